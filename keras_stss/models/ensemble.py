"""Several models as one, each with its own number of frames."""

import keras
from keras import tree

from keras_stss.layers.sample_frames import MeanScores, SampleFrames


def ensemble(members, name="ensemble"):
    """Builds one functional model that averages the scores of several (SELFY, Table 1; MotionSqueeze, Table 1).

    Every member sees its own number of frames, evenly spaced in the clip (:class:`keras_stss.layers.SampleFrames`).
    Members are copied with their weights. Layer ``conv1`` of the first is ``member0_conv1`` here, in the paths of
    variables too, so that all have different names; ``member0_logits`` are its own logits.

    Args:
        members: list of (model, frames): functional models from uint8 frames (B, T, H, W, 3) to logits (B, K).
        name: of the new model.

    Returns:
        ``keras.Model`` from uint8 frames (B, T, H, W, 3), T best the largest number of frames, to float32 ``logits``
        (B, K), whose softmax is the mean of the members' probabilities.

    Raises:
        ValueError: for fewer than two members, and for members with different classes.
    """
    if len(members) < 2:
        raise ValueError(f"an ensemble needs at least two models. Received: {len(members)}")
    classes = [model.output_shape[-1] for model, _ in members]
    if len(set(classes)) > 1:
        raise ValueError(f"the models of an ensemble must have the same classes. Received: classes={classes}")
    frames = keras.Input((None, None, None, 3), dtype="uint8", name="frames")  # (B, T, H, W, 3)
    logits = []
    for number, (model, count) in enumerate(members):
        sampled = SampleFrames(count, name=f"member{number}_frames")(frames)  # (B, count, H, W, 3)
        logits.append(_copy(model, frames, sampled, f"member{number}_"))
    return keras.Model(frames, MeanScores(name="logits")(logits), name=name)


def _copy(model, frames, sampled, prefix):
    """The logits of a copy of the model on ``sampled``, made of ``frames``, with ``prefix`` before its layers' names.

    A copy layer by layer, and no model within a model, whose variables would have the same paths in every member.
    """

    def rename(layer):
        config = layer.get_config()
        if "name" in config:  # operations name themselves
            config["name"] = prefix + config["name"]
        return layer.__class__.from_config(config)

    def call(layer, *args, **kwargs):
        args, kwargs = tree.map_structure(lambda value: sampled if value is frames else value, (args, kwargs))
        return layer(*args, **kwargs)

    copy = keras.models.clone_model(model, input_tensors=frames, clone_function=rename, call_function=call)
    copy.set_weights(model.get_weights())
    return copy.output
