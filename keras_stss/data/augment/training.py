"""A clip's training view as the ``data`` section says: crop and mirror, then colours, then erasing."""

import tensorflow as tf

from keras_stss.data.augment import windows
from keras_stss.data.augment.color import color_jitter, random_grayscale
from keras_stss.data.augment.erase import random_erasing
from keras_stss.data.augment.rand_augment import rand_augment
from keras_stss.data.augment.views import cut, fit, frame_size, mirror
from keras_stss.data.augment.windows import fold

# What a seed is folded with for each step; keeps their draws apart.
_RAND_AUGMENT, _JITTER, _GRAYSCALE, _ERASING = range(1, 5)


def training_view(frames, seed, data, flip):
    """One random view of a clip, the same for all its frames.

    Args:
        frames: uint8 (T, H, W, 3).
        seed: int (2,); the view is a function of it.
        data: :class:`keras_stss.config.DataConfig`; resize, crop, scales and augment are read.
        flip: bool scalar, whether this clip may be mirrored.

    Returns:
        uint8 (T, crop, crop, 3).
    """
    return finish_view(cut(frames, training_window(frame_size(frames), seed, data)), seed, data, flip)


def training_window(size, seed, data):
    """The part of a frame of this size that :func:`training_view` shows: int32 (4,), top, left, height, width."""
    augment, resize, crop = data.augment, data.resize, data.crop
    if augment.crop == "multi_scale_corner":
        return windows.corner_window(size, seed, resize, crop, data.scales)
    if augment.crop == "random_scale":
        short_sides = augment.short_sides or (crop * 8 // 7, crop * 10 // 7)
        return windows.random_scale_window(size, seed, resize, crop, short_sides)
    if augment.crop == "random_resized":
        return windows.random_resized_window(size, seed, resize, augment.area or (0.08, 1.0))
    return windows.multi_scale_window(size, seed, resize, data.scales)


def finish_view(part, seed, data, flip):
    """The rest of :func:`training_view`, from the part of the frames that the window shows."""
    augment = data.augment
    view = mirror(fit(part, data.crop), seed, flip)
    if augment.rand_augment.ops:
        ops, magnitude = augment.rand_augment.ops, augment.rand_augment.magnitude
        view = rand_augment(view, fold(seed, _RAND_AUGMENT), ops, magnitude)
    jitter = augment.color_jitter
    if jitter.brightness or jitter.contrast or jitter.saturation or jitter.hue:
        strengths = {name: getattr(jitter, name) for name in ("brightness", "contrast", "saturation", "hue")}
        view = color_jitter(view, fold(seed, _JITTER), probability=jitter.probability, **strengths)
    if augment.grayscale:
        view = random_grayscale(view, fold(seed, _GRAYSCALE), augment.grayscale)
    if augment.erasing:
        view = random_erasing(view, fold(seed, _ERASING), augment.erasing)
    return tf.ensure_shape(view, [part.shape[0], data.crop, data.crop, 3])
