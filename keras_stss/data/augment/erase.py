"""Random erasing for clips."""

import tensorflow as tf

from keras_stss.data.augment.windows import area_box, parts_of

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
    frames, seeds = tf.convert_to_tensor(frames), parts_of(seed, 3)
    size = tf.shape(frames)[1:3]

    def erased():
        box, offset, fits = area_box(size, seeds[1], _AREA, _ASPECT)
        box = tf.concat([offset, offset + tf.where(fits, box, 0)], 0)
        noise = tf.random.stateless_uniform(tf.concat([size, [3]], 0), seeds[2], 0, 256, tf.int32)
        noise = tf.broadcast_to(tf.cast(noise, tf.uint8), tf.shape(frames))
        return tf.ensure_shape(pasted(frames, noise, box), frames.shape)

    return tf.cond(tf.random.stateless_uniform([], seeds[0]) < probability, erased, lambda: frames)


def pasted(frames, others, box):
    """Frames with what lies in a box of others of the same shape.

    Args:
        frames, others: (..., H, W, C).
        box: int (4,), top, left, bottom and right, the last two not included.
    """
    # Whole rows are copied, which takes a tenth of the time of a choice for each pixel.
    top, left, bottom, right = tf.unstack(box)
    own, other = frames[..., top:bottom, :, :], others[..., top:bottom, :, :]
    middle = tf.concat([own[..., :left, :], other[..., left:right, :], own[..., right:, :]], -2)
    return tf.concat([frames[..., :top, :, :], middle, frames[..., bottom:, :, :]], -3)
