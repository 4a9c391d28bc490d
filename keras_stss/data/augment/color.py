"""Colours of a clip: jitter and grayscale, drawn once and applied to all frames alike.

The factors mean what they mean in torchvision (``ColorJitter``), where the recipes of the papers come from; but
contrast is measured from the mean of the clip, since a mean of each frame would make it flicker.
"""

import tensorflow as tf

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def color_jitter(frames, seed, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, probability=1.0):
    """Changes brightness, contrast, saturation and hue by random amounts, in this order.

    Args:
        frames: uint8 (..., H, W, 3).
        seed: int (2,).
        brightness, contrast, saturation: b; the factor is uniform from 1 - b (at least 0) to 1 + b. 0: unchanged.
        hue: h, at most 0.5; the shift is uniform from -h to h, where 1 is the whole circle. 0: unchanged.
        probability: share of the clips that are changed at all.

    Returns:
        uint8, the shape of ``frames``.
    """
    frames, draws = tf.convert_to_tensor(frames), tf.random.stateless_uniform([5], seed)
    changes = ((adjust_brightness, brightness), (adjust_contrast, contrast), (adjust_saturation, saturation))

    def jittered():
        values = tf.cast(frames, tf.float32)
        for number, (change, strength) in enumerate(changes):
            if strength:
                low = max(0.0, 1.0 - strength)
                values = change(values, low + draws[number] * (1.0 + strength - low))
        return to_uint8(adjust_hue(values, (2.0 * draws[3] - 1.0) * hue) if hue else values)

    return tf.cond(draws[4] < probability, jittered, lambda: frames)


def random_grayscale(frames, seed, probability):
    """Takes the colour from a share of the clips; the three channels stay.

    Args:
        frames: uint8 (..., H, W, 3).
        seed: int (2,).
        probability: share of the clips.

    Returns:
        uint8, the shape of ``frames``.
    """
    frames = tf.convert_to_tensor(frames)

    def gray():
        return tf.repeat(to_uint8(_luma(tf.cast(frames, tf.float32))), 3, axis=-1)

    return tf.cond(tf.random.stateless_uniform([], seed) < probability, gray, lambda: frames)


def adjust_brightness(values, factor):
    """Multiplies by the factor. Float (..., H, W, 3) from 0 to 255, as all of these."""
    return _clip(values * factor)


def adjust_contrast(values, factor):
    """Multiplies the distance from the mean luma of the whole clip."""
    mean = tf.reduce_mean(_luma(values))
    return _clip(mean + factor * (values - mean))


def adjust_saturation(values, factor):
    """Multiplies the distance of each pixel from its luma."""
    luma = _luma(values)
    return _clip(luma + factor * (values - luma))


def adjust_hue(values, shift):
    """Turns the hue by a share of the circle, between -1 and 1."""
    return _clip(tf.image.adjust_hue(values, shift))


def to_uint8(values):
    """Rounds values from 0 to 255."""
    return tf.cast(tf.round(values), tf.uint8)


def _luma(values):
    return tf.tensordot(values, tf.constant(_LUMA), 1)[..., None]


def _clip(values):
    return tf.clip_by_value(values, 0.0, 255.0)
