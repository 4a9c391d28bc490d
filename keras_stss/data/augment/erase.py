"""Random erasing for clips."""

import tensorflow as tf

from keras_stss.data.augment.windows import area_box

_AREA, _ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)


def random_erasing(frames, seed, probability):
    """Covers a box with noise, the same box and the same noise in all frames (Zhong et al., AAAI 2020).

    The box takes 2 % to a third of the frame, with a ratio of width to height between 0.3 and 1 / 0.3.

    Args:
        frames: uint8 (T, H, W, 3).
        seed: int (2,).
        probability: share of the clips.

    Returns:
        uint8 (T, H, W, 3).
    """
    seeds = tf.unstack(tf.random.split(seed, 3))
    size = tf.shape(frames)[1:3]

    def erased():
        box, offset, fits = area_box(size, seeds[1], _AREA, _ASPECT)
        noise = tf.random.stateless_uniform(tf.concat([size, [3]], 0), seeds[2], 0, 256, tf.int32)
        return tf.where(inside_box(size, offset, offset + box) & fits, tf.cast(noise, tf.uint8), frames)

    return tf.cond(tf.random.stateless_uniform([], seeds[0]) < probability, erased, lambda: frames)


def inside_box(size, start, end):
    """Bool (H, W, 1): whether a pixel lies between start (top, left) and end (bottom, right), the end not included."""
    rows, columns = ((tf.range(size[axis]) >= start[axis]) & (tf.range(size[axis]) < end[axis]) for axis in (0, 1))
    return (rows[:, None] & columns)[..., None]
