"""TensorFlow Addons' side of the benchmark: its CorrelationCost, one call an offset (environment: `make peers`)."""

import importlib.metadata
import warnings

import numpy as np
import tensorflow as tf

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package says at import that it has come to its end
    from tensorflow_addons.layers import CorrelationCost

VERSIONS = {name: importlib.metadata.version(name) for name in ("tensorflow-addons",)}
VERSIONS["tensorflow-addons' tensorflow"] = tf.__version__


def make(case, arrays, mode):
    """Square windows only; its mean over the channels is made a sum, and its (U·V) axis split, as part of the call."""
    offsets, (side, columns) = case["offsets"], case["window"]
    if side != columns:
        raise ValueError("CorrelationCost has square windows only")
    features = tf.constant(arrays["features"].transpose(0, 1, 4, 2, 3))  # (B, T, C, H, W)
    gradient = tf.constant(arrays["gradient"].transpose(0, 1, 4, 5, 6, 2, 3))
    _, time, channels, height, width = features.shape
    correlate = CorrelationCost(1, side // 2, 1, 1, side // 2, "channels_first")
    reach = max(map(abs, offsets))

    def volume_of(features):
        unit = features * tf.math.rsqrt(tf.reduce_sum(tf.square(features), axis=2, keepdims=True) + 1e-6)
        padded = tf.pad(unit, ((0, 0), (reach, reach), (0, 0), (0, 0), (0, 0)))
        frames = tf.reshape(unit, (-1, channels, height, width))
        volumes = []
        for offset in offsets:
            others = tf.reshape(padded[:, reach + offset : reach + offset + time], frames.shape)
            volumes.append(tf.reshape(correlate([frames, others]), (-1, time, side, side, height, width)))
        return tf.stack(volumes, axis=2) * channels  # (B, T, L, U, V, H, W)

    @tf.function
    def forward(features):
        return (volume_of(features),)

    @tf.function
    def step(features, gradient):
        with tf.GradientTape() as tape:
            tape.watch(features)
            volume = volume_of(features)
        return volume, tape.gradient(volume, features, gradient)

    def fetch(results):
        found = {"volume": np.asarray(results[0]).transpose(0, 1, 5, 6, 2, 3, 4)}
        if mode == "step":
            found["gradient"] = np.asarray(results[1]).transpose(0, 1, 3, 4, 2)
        return found

    return (lambda: forward(features)) if mode == "forward" else (lambda: step(features, gradient)), fetch


CONTESTANTS = {("stss", "CorrelationCost, an offset a call"): make}
