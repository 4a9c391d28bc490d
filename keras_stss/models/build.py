"""From a config to a model, and from a run or file back to one."""

from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import keras

from keras_stss.blocks import (
    CorrelationBlock,
    CorrespondenceBlock,
    LocalAttentionBlock,
    MotionSqueezeBlock,
    NonLocalBlock,
    SELFYBlock,
    STCBlock,
    STMBlock,
)
from keras_stss.config import ALONE, Config, ConfigError, load_config, parse_config, set_key
from keras_stss.layers import NeighborMean, NormalizeFrames
from keras_stss.models.classifier import classify
from keras_stss.models.ensemble import ensemble
from keras_stss.models.features import feature_extractor
from keras_stss.models.i3d import i3d
from keras_stss.models.mobilenet_v2 import mobilenet_v2
from keras_stss.models.resnet import resnet
from keras_stss.models.weights.pretrained import load_pretrained
from keras_stss.ops.dispatch import why_not_native

SOMETHING_SOMETHING_CLASSES = 174
#: The classes behind the names that a config gives to blocks.
BLOCK_CLASSES = {
    "selfy": SELFYBlock,
    "motion_squeeze": MotionSqueezeBlock,
    "stm": STMBlock,
    "stcb": STCBlock,
    "non_local": NonLocalBlock,
    "cp": CorrespondenceBlock,
    "correlation": CorrelationBlock,
    "local_attention": LocalAttentionBlock,
}
#: Blocks with a causal form of their own; others are causal, or not, as their other arguments make them.
CAUSAL_FORMS = ("motion_squeeze", "stm")
#: The operation that a native block stands or falls with.
BLOCK_OPERATIONS = {"selfy": "stss", "motion_squeeze": "displacement"}
#: The width that the papers' backbones have.
PAPER_WIDTH = 64


def build_model(config_or_path, classes=None, return_features=False, **overrides):
    """Builds the functional model that a config describes.

    Args:
        config_or_path: :class:`keras_stss.config.Config`, path of a YAML file, or bare name in ``configs/`` (see
            :func:`keras_stss.list_models`).
        classes: number of classes; may be left out for the Something-Something formats (174).
        return_features: the model gives a dictionary of what it sees on the way, too (see
            :func:`keras_stss.models.feature_extractor`).
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
        members = config.model.ensemble
        model = ensemble([(_network(each, classes), each.frames) for each in members]) if members else None
        model = model or _network(config.model, classes)
        return feature_extractor(model) if return_features else model
    finally:
        keras.config.set_dtype_policy(outer_policy)


def _network(network, classes):
    """One network with its weights."""
    model = _assemble(network, classes)
    if network.pretrained:
        load_pretrained(model, network.pretrained, network.pretrained_strict).log()
    return model


def _assemble(network, classes):
    frames = keras.Input((None, None, None, 3), dtype="uint8", name="frames")  # (B, T, H, W, 3)
    insert = {stage: _steps(stage, chosen, Counter(), network.causal) for stage, chosen in network.insert.items()}
    shift_divisor = network.shift_divisor if network.temporal == "tsm" else None
    if network.backbone == "i3d":
        # As its weights want their pixels: from -1 to 1.
        pixels = NormalizeFrames((0.5,) * 3, (0.5,) * 3, name="normalize")(frames)
        kernel, scale = network.stem_kernel or (7, 7, 7), network.width / PAPER_WIDTH
        stages = i3d(pixels, kernel, scale, network.stem_padding, insert)
        features = NeighborMean(name="neighbors")(stages["mixed_5c"])
    else:
        pixels = NormalizeFrames(name="normalize")(frames)
        if network.backbone == "mobilenet_v2":
            stages = mobilenet_v2(pixels, network.width / PAPER_WIDTH, shift_divisor, insert, network.causal)
        else:
            stm = network.stm.model_dump() if network.temporal == "stm" else None
            options = {"shift_every": network.shift_every, "stm": stm, "causal": network.causal}
            stages = resnet(pixels, network.backbone, network.width, shift_divisor, insert, **options)
        features = list(stages.values())[-1]
    logits = classify(features, classes, network.dropout)
    return keras.Model(frames, logits, name=f"{network.temporal}_{network.backbone}")


def _steps(stage, chosen, names, causal):
    """What a section puts after a stage: its blocks in the order of ``BLOCKS``, those side by side, or a list's.

    ``names`` counts the blocks of a kind; ``causal`` makes those causal that can be told to.
    """
    steps = []
    for name in chosen.named():
        if name == "sequence":
            steps += [step for each in chosen.sequence for step in _steps(stage, each, names, causal)]
        elif name == "parallel":
            members = [(each.named()[0], each) for each in chosen.parallel]
            alone = [_block(stage, kind, each, names, causal, **ALONE[kind]) for kind, each in members]
            steps.append(_Sum(f"{stage}_{_unique('parallel', names)}", alone))
        else:
            steps.append(_block(stage, name, chosen, names, causal))
    return steps


def _block(stage, name, chosen, names, causal, **options):
    section = getattr(chosen, name)
    if causal and name in CAUSAL_FORMS:
        options["causal"] = True
    # Otherwise the first step would stop, deep inside Keras.
    if getattr(section, "implementation", None) == "native" and (reason := why_not_native(BLOCK_OPERATIONS[name])):
        raise ConfigError(f"model.insert.{stage}.{name}.implementation: native is not possible: {reason}")
    with _mendable(stage, name):
        block = BLOCK_CLASSES[name](**{**section.model_dump(), **options}, name=f"{stage}_{_unique(name, names)}")
    return _Step(stage, name, block)


def _unique(name, names):
    names[name] += 1
    return name if names[name] == 1 else f"{name}_{names[name]}"


@contextmanager
def _mendable(stage, name):
    """Says of a block that cannot be made, or not at its place, which key asks for it."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"model.insert.{stage}.{name}: {str(error).splitlines()[0]}") from None


class _Step:
    """A block at its place."""

    def __init__(self, stage, name, layer):
        self.stage, self.name, self.layer = stage, name, layer

    def __call__(self, tensor):
        with _mendable(self.stage, self.name):
            return self.layer(tensor)


class _Sum:
    """Blocks side by side: what each gives is added to the input."""

    def __init__(self, name, layers):
        self.name, self.layers = name, layers

    def __call__(self, tensor):
        return keras.layers.Add(name=self.name)([tensor, *(layer(tensor) for layer in self.layers)])


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
