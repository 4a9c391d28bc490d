"""From a config to a model, and from a run or file back to one."""

from pathlib import Path

import keras

from keras_stss.blocks import MotionSqueezeBlock, SELFYBlock
from keras_stss.config import BLOCKS, Config, ConfigError, load_config, parse_config, set_key
from keras_stss.layers import NormalizeFrames
from keras_stss.models.classifier import classify
from keras_stss.models.pretrained import load_pretrained
from keras_stss.models.resnet import resnet
from keras_stss.ops.dispatch import why_not_native

SOMETHING_SOMETHING_CLASSES = 174
#: The classes behind the names that a config gives to blocks.
BLOCK_CLASSES = {"selfy": SELFYBlock, "motion_squeeze": MotionSqueezeBlock}
#: The operation that a native block stands or falls with.
BLOCK_OPERATIONS = {"selfy": "stss", "motion_squeeze": "displacement"}


def build_model(config_or_path, classes=None, **overrides):
    """Builds the functional model that a config describes.

    Args:
        config_or_path: :class:`keras_stss.config.Config`, path of a YAML file, or bare name in ``configs/``.
        classes: number of classes; may be left out for the Something-Something formats (174).
        **overrides: keys of the ``model`` section (``backbone="resnet18"``), or ``**{"train.precision": …}``.

    Returns:
        ``keras.Model`` from uint8 frames (B, T, H, W, 3), any B, T, H and W, to float32 logits (B, classes). Pixels are
        normalised inside. ``model.pretrained``, where it is set, names the weights; others are random.

    Raises:
        ConfigError: for what the config cannot mean, and for weights that do not fit.
    """
    config = config_or_path if isinstance(config_or_path, Config) else load_config(config_or_path)
    if overrides:
        config = _override(config, overrides)
    if classes is None:
        if config.data.format == "clips":
            raise ConfigError("the number of classes is not known before the clips are read: pass classes=…")
        classes = SOMETHING_SOMETHING_CLASSES
    outer_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.train.precision)
    try:
        model = _assemble(config.model, classes)
    finally:
        keras.config.set_dtype_policy(outer_policy)
    if config.model.pretrained:
        load_pretrained(model, config.model.pretrained, config.model.pretrained_strict).log()
    return model


def _assemble(model, classes):
    frames = keras.Input((None, None, None, 3), dtype="uint8", name="frames")  # (B, T, H, W, 3)
    insert = {stage: _blocks(stage, chosen) for stage, chosen in model.insert.items()}
    stages = resnet(
        NormalizeFrames(name="normalize")(frames),
        model.backbone,
        model.width,
        model.shift_divisor if model.temporal == "tsm" else None,
        insert,
        model.shift_every,
    )
    logits = classify(stages["res5"], classes, model.dropout)
    return keras.Model(frames, logits, name=f"{model.temporal}_{model.backbone}")


def _blocks(stage, chosen):
    """The layers that an ``insert`` section names, in the order of ``BLOCKS``."""
    options = {name: getattr(chosen, name) for name in BLOCKS if getattr(chosen, name) is not None}
    for name, section in options.items():
        # Otherwise the first step would stop, deep inside Keras.
        if section.implementation == "native" and (reason := why_not_native(BLOCK_OPERATIONS[name])):
            raise ConfigError(f"model.insert.{stage}.{name}.implementation: native is not possible: {reason}")
    return [BLOCK_CLASSES[name](**section.model_dump(), name=f"{stage}_{name}") for name, section in options.items()]


def _override(config, overrides):
    values = config.model_dump()
    for key, value in overrides.items():
        set_key(values, key if "." in key else f"model.{key}", value)
    return parse_config(values, source="build_model")


def load_model(run_or_file):
    """Loads a trained model.

    Args:
        run_or_file: a run directory (its best model), or a ``.keras`` file.

    Returns:
        ``keras.Model`` with logits.

    Raises:
        ConfigError: where there is no such model, or the file cannot be read.
    """
    path = Path(run_or_file)
    if path.is_dir():
        if not (path / "best.keras").is_file():
            raise ConfigError(
                f"{path} holds no best.keras: no epoch of this run has ended yet, or it is no run directory"
            )
        path = path / "best.keras"
    if not path.is_file():
        raise ConfigError(f"no run directory or .keras file at {path}")
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        # Keras raises whatever its readers raise (zip, h5, JSON, …) on a damaged file.
        raise ConfigError(f"{path} cannot be loaded as a Keras model: {type(error).__name__}: {error}") from error


def transfer_weights(source, target):
    """Copies the weights of layers that both models have, by name and shape.

    Args:
        source, target: Keras models.

    Returns:
        (number of tensors copied, paths of the target's tensors that kept their values).

    Raises:
        ConfigError: where nothing at all fits.
    """
    known = {variable.path: variable for variable in source.variables}
    kept, copied = [], 0
    for variable in target.variables:
        origin = known.get(variable.path)
        if "seed_generator" in variable.path:
            continue
        if origin is None or tuple(origin.shape) != tuple(variable.shape):
            kept.append(variable.path)
            continue
        variable.assign(origin)
        copied += 1
    if not copied:
        raise ConfigError("no weight fits by name and shape: the two models differ in width or backbone")
    return copied, kept
