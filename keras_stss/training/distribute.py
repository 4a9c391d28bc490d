"""Devices and strategies."""

import tensorflow as tf

from keras_stss.config import ConfigError


def make_strategy(train):
    """The ``tf.distribute`` strategy that a config asks for.

    Args:
        train: :class:`keras_stss.config.TrainConfig`.

    Returns:
        The default strategy (one device), or ``tf.distribute.MirroredStrategy``.

    Raises:
        ConfigError: for devices that are not there, or a batch that they cannot share evenly.
    """
    if train.logical_cpus > 1:
        _split_cpu(train.logical_cpus)
    gpus = tf.config.list_logical_devices("GPU")
    mirrored = train.strategy == "mirrored" or train.devices or (train.strategy == "auto" and len(gpus) > 1)
    if not mirrored:
        return tf.distribute.get_strategy()
    devices = train.devices or tuple(
        device.name.removeprefix("/device:") for device in gpus or tf.config.list_logical_devices("CPU")
    )
    known = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices()]
    if missing := [name for name in devices if name not in known]:
        raise ConfigError(f"train.devices names {', '.join(missing)}; here are {', '.join(known)}")
    if len(set(devices)) < len(devices):
        raise ConfigError(f"train.devices names a device twice. Received: {', '.join(devices)}")
    if train.batch_size % len(devices):
        raise ConfigError(
            f"train.batch_size must be a multiple of the number of devices. "
            f"Received: {train.batch_size} clips for {len(devices)} devices ({', '.join(devices)})"
        )
    return tf.distribute.MirroredStrategy(devices)


def _split_cpu(count):
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        if len(tf.config.list_logical_devices("CPU")) != count:
            raise ConfigError(
                f"train.logical_cpus={count} must be set before TensorFlow has started its devices in this process"
            ) from None


def components(variable):
    """The copies of a Keras or TensorFlow variable, one a replica."""
    value = getattr(variable, "value", variable)
    value = variable if callable(value) else value
    return list(getattr(value, "values", (value,)))


def average_statistics(model):
    """Averages the replicas' statistics of batch normalisation, which drift apart while each sees its own clips."""
    for variable in model.non_trainable_variables:
        copies = components(variable)
        if len(copies) > 1 and variable.dtype.startswith("float"):
            mean = tf.add_n([tf.convert_to_tensor(copy) for copy in copies]) / len(copies)
            for copy in copies:
                copy.assign(mean)
