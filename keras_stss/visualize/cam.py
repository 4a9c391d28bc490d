"""Grad-CAM: where in the frames lies what speaks for a class."""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_stss.evaluation.metrics import softmax
from keras_stss.visualize.network import VisualizeError, network_of


@dataclasses.dataclass(frozen=True, eq=False)
class ClassMap:
    """Where lies what speaks for one class.

    Attributes:
        label: index of the class.
        stage: where it was looked.
        probability: of the class, in [0, 1].
        maps: float32 (T', H', W') of the stage, not negative. After the last stage, their mean over the places, less
            what the ReLU cuts off, is the logit without its bias.
        heat: float32 (T, H, W) in [0, 1], a value for each pixel of each frame: 1 is the strongest of the clip. All 0
            where nothing speaks for the class.
    """

    label: int
    stage: str
    probability: float
    maps: np.ndarray
    heat: np.ndarray


def grad_cam(model, clip, label=None, stage=None, member=None):
    """Gradient-weighted class activation maps of a clip (Selvaraju et al., "Grad-CAM", ICCV 2017).

    With A the output of a stage and y the logit of the class, ReLU(Σ_k α_k A_k) with α_k the mean of ∂y/∂A_k
    (eq. 1 and 2). A clip is one input: the mean is over all places and all frames, so that frames can be compared.

    Args:
        model: ``keras.Model`` from uint8 frames (B, T, H, W, 3) to logits (B, K).
        clip: uint8 (T, H, W, 3).
        label: index of the class; None for the predicted one.
        stage: name of the stage; None for the last one.
        member: network of an ensemble, from 0.

    Returns:
        :class:`ClassMap`.

    Raises:
        VisualizeError: for a class or stage that there is not, for what is no clip, and for an ensemble without
            ``member``.
    """
    network = network_of(model, member)
    shown = network.frames(clip)
    if stage is None:
        if not network.stages:
            raise VisualizeError("the model has no stages to look at: it is not one of this project's models")
        stage = list(network.stages)[-1]
    network.check_stage(stage)
    features = network.part((stage,))(np.asarray(clip)[None], training=False)[stage]  # (1, T', H', W', C)
    with tf.GradientTape() as tape:
        tape.watch(features)
        logits = network.head(stage)(features, training=False)  # (1, K)
        classes = logits.shape[-1]
        label = int(np.argmax(logits[0])) if label is None else label
        if not 0 <= label < classes:
            raise VisualizeError(f"label must be from 0 to {classes - 1}. Received: {label}")
        # A mean's gradients are lost in half precision where there are many places.
        places = float(np.prod(features.shape[1:4]))
        score = logits[0, label] * places
    weights = np.asarray(tape.gradient(score, features), "float32").mean((0, 1, 2, 3))  # (C,), sums of ∂y/∂A
    maps = np.maximum(np.asarray(features[0], "float32") @ weights, 0.0)  # (T', H', W')
    probability = float(softmax(np.asarray(logits, "float32"))[0, label])
    return ClassMap(label, stage, probability, maps, _heat(maps, shown.shape[:3]))


def _heat(maps, size):
    """Maps (T', H', W') at the size (T, H, W), the largest as 1."""
    frames = tf.image.resize(maps[..., None], size[1:])[..., 0]  # (T', H, W)
    flat = tf.reshape(frames, (1, maps.shape[0], -1, 1))
    heat = tf.image.resize(flat, (size[0], flat.shape[2])) if size[0] != maps.shape[0] else flat
    heat = np.asarray(heat).reshape(size)
    return heat / max(float(heat.max()), np.finfo("float32").tiny) if heat.max() > 0 else np.zeros(size, "float32")
