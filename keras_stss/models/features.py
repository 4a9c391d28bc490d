"""Looking inside a model: the outputs of its stages, and the motion that its blocks see."""

import keras

from keras_stss.config import STAGES
from keras_stss.layers.motion_features import MotionFeatures


def feature_extractor(model):
    """Builds a model that gives everything worth looking at, on the weights of another.

    Args:
        model: as :func:`keras_stss.build_model` or :func:`keras_stss.load_model` give it; or anyone's functional model
            with motion blocks, which has no stages. What happens to its weights later is seen.

    Returns:
        ``keras.Model`` from the same frames to a dictionary of ``"logits"``; the output of each stage by its name
        (``"res3"``), blocks after it included; and what each motion block sees, by the name of its layer, as far as it
        has that: ``"res3_selfy/similarity"`` (B, T, H', W', L, U, V), ``"res3_selfy/displacement"``
        (B, T, H', W', L, 2) in positions, horizontal first, and ``"res3_selfy/confidence"`` (B, T, H', W', L, 1), or
        of STM's blocks ``"res3_0_cmm/motion"``. In an ensemble the names begin with ``member0_`` and so on, and the
        members' own logits are there too.
    """
    outputs = {"logits": model.output}
    for prefix in _prefixes(model):
        if prefix:
            outputs[f"{prefix}logits"] = model.get_layer(f"{prefix}logits").output
        outputs |= {stage: layer.output for stage, layer in _stage_ends(model, prefix).items()}
    for layer in model.layers:
        if hasattr(layer, "motion_features"):
            motion = MotionFeatures(layer, name=f"{layer.name}_features")(layer.input)
            outputs |= {f"{layer.name}/{kind}": tensor for kind, tensor in motion.items()}
    return keras.Model(model.input, outputs, name=f"{model.name}_features")


def _prefixes(model):
    """What the names of layers begin with: nothing, or in an ensemble the number of the member."""
    members = [layer.name.removesuffix("logits") for layer in model.layers if layer.name.endswith("_logits")]
    return members or [""]


def _stage_ends(model, prefix):
    """{name of a stage, with the prefix: its last layer}.

    The names of a stage's layers, and of the blocks after it, are the stage's or begin with it (``res3_…``). Keras
    lists a layer after those that it depends on, and all layers of a stage lead to its end: the last one listed.
    """
    for stages in dict.fromkeys(STAGES.values()):
        ends = {}
        for layer in model.layers:
            for stage in stages:
                name = prefix + stage
                if layer.name == name or layer.name.startswith(f"{name}_"):
                    ends[name] = layer
        if len(ends) == len(stages):
            return {prefix + stage: ends[prefix + stage] for stage in stages}
    return {}
