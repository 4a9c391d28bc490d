"""Seeded inputs and weights for tests of single layers and blocks."""

import numpy as np


def sample(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomize(layer, seed=0, deviation=0.5):
    """Values away from every initializer's, so that no scale is zero and no statistic trivial.

    ``deviation`` None keeps the outputs' size: one over the root of the kernel's inputs.
    """
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif deviation is not None:
            weight.assign(rng.normal(size=weight.shape) * deviation)
        else:
            fan_in = np.prod(weight.shape[:-1]) if len(weight.shape) > 1 else 25
            weight.assign(rng.normal(size=weight.shape) / np.sqrt(fan_in))
    return layer
