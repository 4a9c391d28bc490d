"""Devices, strategies, and what all replicas have in common."""

import contextlib
import functools
import logging
import re
import signal
import weakref

import tensorflow as tf
from tensorflow.python.eager import context

from keras_stss.config import ConfigError
from keras_stss.data.workers import from_chief, gather, is_chief, training_batches, workers
from keras_stss.training.workers.cluster import find_cluster
from keras_stss.training.workers.meeting import meet
from keras_stss.training.workers.supervise import is_supervised

__all__ = [
    "WorkerLost",
    "average_statistics",
    "broadcast",
    "components",
    "from_chief",
    "gather",
    "is_chief",
    "lost_workers_told",
    "make_strategy",
    "spread_seeds",
    "training_batches",
    "workers",
]

log = logging.getLogger(__name__)

#: Seconds for TensorFlow to connect the workers once all of them are there; it would wait without end itself.
CONNECTION_SECONDS = 120
#: Seconds without a sign of life after which a worker counts as lost. TensorFlow's own 10 are also exceeded by a worker
#: that lives, where others use its processors.
SILENCE_SECONDS = 60

#: What TensorFlow raises when another worker has gone.
_LOSSES = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
    tf.errors.CancelledError,
    tf.errors.InternalError,
)


class WorkerLost(RuntimeError):
    """Another worker of the job has gone; all start again from the last checkpoint."""


def make_strategy(train):
    """The ``tf.distribute`` strategy that a config asks for.

    Args:
        train: :class:`keras_stss.config.TrainConfig`.

    Returns:
        The default strategy (one device), ``tf.distribute.MirroredStrategy`` or, once all workers are there,
        ``tf.distribute.MultiWorkerMirroredStrategy``.

    Raises:
        ConfigError: for devices that are not there, a batch that they cannot share evenly, or workers that do not come.
    """
    cluster = find_cluster(train)
    if cluster is not None and cluster.count > 1:
        return _multi_worker(train, cluster)
    if train.logical_cpus > 1:
        _split_cpu(train.logical_cpus)
    gpus = tf.config.list_logical_devices("GPU") if train.logical_cpus == 1 else []
    several = len(gpus) > 1 or train.logical_cpus > 1
    if train.strategy != "mirrored" and not train.devices and (train.strategy == "one" or not several):
        return tf.distribute.get_strategy()
    devices = train.devices or tuple(
        device.name.removeprefix("/device:") for device in gpus or tf.config.list_logical_devices("CPU")
    )
    known = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices()]
    if missing := [name for name in devices if name not in known]:
        raise ConfigError(f"train.devices names {', '.join(missing)}; here are {', '.join(known)}")
    if len(set(devices)) < len(devices):
        raise ConfigError(f"train.devices names a device twice. Received: {', '.join(devices)}")
    _check_batch(train, len(devices), ", ".join(devices))
    return _mirrored(tuple(devices))


@functools.lru_cache
def _mirrored(devices):
    """One strategy for the same devices in a process: the exchanges of two would have the same numbers, and clash."""
    return tf.distribute.MirroredStrategy(devices)


def _check_batch(train, count, names):
    if train.batch_size % count:
        raise ConfigError(
            f"train.batch_size must be a multiple of the number of devices. "
            f"Received: {train.batch_size} clips for {count} devices ({names})"
        )
    if train.batch_size // count % train.accumulate:
        raise ConfigError(
            "each device's share of train.batch_size must be a multiple of train.accumulate. "
            f"Received: {train.batch_size} clips for {count} devices ({names}), accumulate={train.accumulate}"
        )


def _split_cpu(count):
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        if len(tf.config.list_logical_devices("CPU")) != count:
            raise ConfigError(
                f"train.logical_cpus={count} must be set before TensorFlow has started its devices in this process"
            ) from None


def _multi_worker(train, cluster):
    if train.devices or train.logical_cpus > 1:
        raise ConfigError(
            "train.devices and train.logical_cpus do not go with several workers: each takes all GPUs that it sees "
            "(CUDA_VISIBLE_DEVICES), or its CPU"
        )
    gpus = len(tf.config.list_physical_devices("GPU"))
    replicas = max(gpus, 1) * cluster.count
    _check_batch(train, replicas, f"{cluster.count} workers with {max(gpus, 1)} each")
    facts = {"workers": list(cluster.addresses), "devices a worker": max(gpus, 1), "TensorFlow": tf.__version__}
    settings = {key: value for key, value in train.model_dump(mode="json").items() if key not in ("run", "board")}
    facts |= {f"train.{key}": value for key, value in settings.items()}
    meet(cluster, facts, train.wait)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.index,
        num_accelerators={"GPU": gpus},
        rpc_layer="grpc",
    )
    _bear_silence(cluster)
    with _time_limit(CONNECTION_SECONDS), _lost_workers_told():
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
        except RuntimeError as error:
            if isinstance(error, tf.errors.OpError):
                raise
            raise ConfigError(f"workers must be set up before TensorFlow is used in a process: {error}") from None
    # Each worker's part of the data has as many batches as the others': no need to ask them before each one.
    strategy.extended.experimental_enable_get_next_as_optional = False
    log.info("worker %d of %d (%s), %d replicas", cluster.index, cluster.count, ", ".join(cluster.addresses), replicas)
    return strategy


def _bear_silence(cluster):
    """The service that the strategy sets up by itself, as there but for its patience, for which it has no argument."""
    if context.context().coordination_service is None:
        jobs = [context.coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=cluster.count)]
        context.context().configure_coordination_service(
            "standalone",
            "/job:worker/replica:0/task:0",
            heartbeat_timeout_in_ms=1000 * SILENCE_SECONDS,
            coordinated_jobs=jobs,
        )


@contextlib.contextmanager
def _time_limit(seconds):
    """Ends a supervised worker by SIGALRM, whatever it is waiting in; its supervisor starts it again."""
    if not is_supervised():
        yield
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


@contextlib.contextmanager
def lost_workers_told(strategy):
    """Around all work of a job's worker: raises :class:`WorkerLost` where TensorFlow fails because another has gone."""
    if workers(strategy)[1] == 1:
        yield
        return
    with _lost_workers_told():
        yield


@contextlib.contextmanager
def _lost_workers_told():
    try:
        yield
    except _LOSSES as error:
        # What was lost, between where in the graph it was missed and how to debug TensorFlow.
        reason = str(error.message).partition("aborted by")[2] or str(error.message)
        task = re.search(r"/job:worker/(?:replica:\d+/)?task:(\d+)", reason)
        log.info("what TensorFlow says of the lost worker: %.300s", " ".join(reason.split()).strip(" :"))
        raise WorkerLost(f"{f'worker {task[1]}' if task else 'a worker'} of the job has gone") from error


def components(variable):
    """The copies of a Keras or TensorFlow variable, one a replica of this worker."""
    value = _value(variable)
    return list(getattr(value, "values", (value,)))


def _value(variable):
    value = getattr(variable, "value", variable)
    return variable if callable(value) else value


def broadcast(strategy, variables):
    """Every replica of every worker takes the first one's values."""
    if strategy.num_replicas_in_sync == 1:
        return
    values = [_value(variable) for variable in variables]

    def first_or_zero(value):
        is_first = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
        value = tf.convert_to_tensor(value)
        if not value.dtype.is_floating:
            value = tf.cast(value, tf.int64)  # int32 stays on the host, where devices exchange nothing
        return tf.where(is_first, value, tf.zeros_like(value))

    _reduce_into(strategy, values, first_or_zero, tf.distribute.ReduceOp.SUM)()


def average_statistics(strategy, model, more=()):
    """Averages the statistics of batch normalisation, which drift apart while each replica sees its own clips.

    Args:
        strategy: ``tf.distribute.Strategy``.
        model: Keras model that was made in its scope.
        more: further variables to average, such as moving averages of those statistics.
    """
    if strategy.num_replicas_in_sync == 1:
        return
    names = ("moving_mean", "moving_variance")
    values = [_value(variable) for variable in [*(v for v in model.non_trainable_variables if v.name in names), *more]]
    known = _AVERAGING.setdefault(model, {})
    key = tuple(map(id, values))
    if values and key not in known:
        known[key] = _reduce_into(strategy, values, tf.convert_to_tensor, tf.distribute.ReduceOp.MEAN)
    if values:
        known[key]()


#: Model → {its variables: compiled function}.
_AVERAGING = weakref.WeakKeyDictionary()


def spread_seeds(strategy, model):
    """Lets each replica draw other numbers (dropout), as a function of the first one's state.

    Call it after :func:`broadcast`, when a run begins or goes on.
    """
    if strategy.num_replicas_in_sync == 1:
        return
    first = workers(strategy)[0] * strategy.num_replicas_in_sync // workers(strategy)[1]
    for variable in model.non_trainable_variables:
        if variable.name == "seed_generator_state":
            for number, copy in enumerate(components(variable), first):
                copy.assign_add(tf.constant([number * _SEED_STEP, 0], copy.dtype))


#: How far apart the seeds of two replicas are: no seed that a layer is likely to have.
_SEED_STEP = 1_000_003


def _reduce_into(strategy, values, local, operation):
    """A compiled function: variables ← what all replicas' ``local(variable)`` reduce to."""

    def replica():
        results = [tf.identity(local(value)) for value in values]
        # Tensors of one exchange are packed together: they must have one dtype.
        for dtype in dict.fromkeys(result.dtype for result in results):
            places = [place for place, result in enumerate(results) if result.dtype == dtype]
            total = tf.distribute.get_replica_context().all_reduce(operation, [results[place] for place in places])
            for place, value in zip(places, total, strict=True):
                results[place] = value
        return results

    @tf.function
    def reduce():
        for value, reduced in zip(values, strategy.run(replica), strict=True):
            strategy.extended.update(value, _assign, args=(reduced,), group=False)

    return reduce


def _assign(variable, value):
    variable.assign(tf.cast(value, variable.dtype))
