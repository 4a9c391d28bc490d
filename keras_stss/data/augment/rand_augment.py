"""RandAugment for clips (Cubuk et al., CVPR Workshops 2020): random operations of one common strength.

Each operation is drawn once and applied to all frames alike; what it measures (histogram, extremes, mean), it measures
over the whole clip, so that nothing flickers and nothing moves that did not move before.
"""

import math

import tensorflow as tf

from keras_stss.data.augment.color import adjust_brightness, adjust_contrast, adjust_saturation, to_uint8

_MOST_DEGREES, _MOST_SHEAR, _MOST_SHIFT = 30.0, 0.3, 0.3
_MOST_FACTOR, _MOST_BITS = 0.9, 4
_FILL = 128.0  # beside a picture that was moved


def rand_augment(frames, seed, ops, magnitude):
    """Applies ``ops`` operations one after another, each drawn from :data:`OPERATIONS` with a random direction.

    Args:
        frames: uint8 (T, H, W, 3).
        seed: int (2,).
        ops: number of operations.
        magnitude: strength of all of them, from 0 to 10.

    Returns:
        uint8 (T, H, W, 3).
    """
    draws = tf.random.stateless_uniform([ops, 2], seed)
    amount = magnitude / 10.0
    for draw in tf.unstack(draws):
        number = tf.minimum(tf.cast(draw[0] * len(OPERATIONS), tf.int32), len(OPERATIONS) - 1)
        changed = _apply(frames, number, tf.where(draw[1] < 0.5, -amount, amount))
        frames = tf.ensure_shape(changed, frames.shape)
    return frames


@tf.function(reduce_retracing=True)  # to trace the operations once, not for each use
def _apply(frames, number, amount):
    return tf.switch_case(number, [_branch(operation, frames, amount) for operation in OPERATIONS.values()])


def _branch(operation, frames, amount):
    return lambda: operation(frames, amount)


# --- operations: uint8 (T, H, W, 3) and an amount from -1 to 1, of which some use the size alone ----------------------


def _identity(frames, _):
    return tf.identity(frames)


def _auto_contrast(frames, _):
    """Stretches each channel to the full range."""
    values, channels = tf.cast(frames, tf.float32), tf.reshape(frames, [-1, 3])
    low, high = (tf.cast(reduce(channels, 0), tf.float32) for reduce in (tf.reduce_min, tf.reduce_max))  # (3,)
    start, length = tf.where(high > low, low, 0.0), tf.where(high > low, high - low, 255.0)
    return to_uint8((values - start) * 255.0 / length)


def _equalize(frames, _):
    """Makes all values of a channel equally frequent, by the rule of PIL's ``ImageOps.equalize``."""
    channels = tf.reshape(tf.cast(frames, tf.int32), [-1, 3]) + 256 * tf.range(3)
    counts = tf.reshape(tf.math.bincount(tf.reshape(channels, [-1]), minlength=768, maxlength=768), [3, 256])
    # The last value that occurs does not count, so that it becomes 255.
    last = 255 - tf.argmax(tf.reverse(counts, [1]) > 0, 1, output_type=tf.int32)
    step = (tf.reduce_sum(counts, 1) - tf.gather(counts, last, batch_dims=1)) // 255
    step = step[:, None]
    table = (tf.cumsum(counts, 1, exclusive=True) + step // 2) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
    equalized = tf.gather(tf.reshape(tf.cast(table, tf.uint8), [-1]), channels)
    return tf.reshape(equalized, tf.shape(frames))


def _posterize(frames, amount):
    dropped = tf.cast(tf.round(_MOST_BITS * tf.abs(amount)), tf.int32)
    unit = tf.cast(tf.bitwise.left_shift(1, dropped), tf.uint8)
    return frames // unit * unit


def _solarize(frames, amount):
    """Inverts the bright values, all of them at full strength."""
    threshold = tf.cast(tf.round(256.0 * (1.0 - tf.abs(amount))), tf.int16)
    is_bright = tf.cast(tf.cast(frames, tf.int16) >= threshold, tf.uint8)
    return tf.bitwise.bitwise_xor(frames, 255 * is_bright)  # a choice for each pixel would take seven times as long


def _sharpness(frames, amount):
    """Away from, or towards, a picture that is smoothed by a 3x3 kernel; the edge keeps its pixels."""

    def changed():
        values = tf.cast(frames, tf.float32)
        kernel = tf.constant([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13.0
        smooth = tf.nn.depthwise_conv2d(values, tf.tile(kernel[..., None, None], [1, 1, 3, 1]), [1, 1, 1, 1], "VALID")
        inside = values[:, 1:-1, 1:-1]
        change = tf.pad(_MOST_FACTOR * amount * (inside - smooth), [[0, 0], [1, 1], [1, 1], [0, 0]])
        return to_uint8(tf.clip_by_value(values + change, 0.0, 255.0))

    has_inside = tf.reduce_min(tf.shape(frames)[1:3]) > 2
    return tf.cond(has_inside, changed, lambda: tf.identity(frames))


def _with_factor(adjust):
    return lambda frames, amount: to_uint8(adjust(tf.cast(frames, tf.float32), 1.0 + _MOST_FACTOR * amount))


def _rotate(frames, amount):
    angle = amount * (_MOST_DEGREES * math.pi / 180.0)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    return _warp(frames, [[cosine, -sine], [sine, cosine]], [0.0, 0.0])


def _shear_x(frames, amount):
    return _warp(frames, [[1.0, _MOST_SHEAR * amount], [0.0, 1.0]], [0.0, 0.0])


def _shear_y(frames, amount):
    return _warp(frames, [[1.0, 0.0], [_MOST_SHEAR * amount, 1.0]], [0.0, 0.0])


def _translate_x(frames, amount):
    return _warp(frames, [[1.0, 0.0], [0.0, 1.0]], [_MOST_SHIFT * amount * _side(frames, 2), 0.0])


def _translate_y(frames, amount):
    return _warp(frames, [[1.0, 0.0], [0.0, 1.0]], [0.0, _MOST_SHIFT * amount * _side(frames, 1)])


def _side(frames, axis):
    return tf.cast(tf.shape(frames)[axis], tf.float32)


def _warp(frames, matrix, shift):
    """Each pixel (x, y), counted from the centre, takes what lies at matrix · (x, y) + shift."""
    center = (tf.stack([_side(frames, 2), _side(frames, 1)]) - 1.0) / 2.0
    matrix = tf.stack([tf.stack(row) for row in matrix])
    offset = center + tf.stack(shift) - tf.linalg.matvec(matrix, center)
    row = tf.concat([matrix[0], offset[:1], matrix[1], offset[1:], [0.0, 0.0]], 0)  # (8,), of a projective transform
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(frames, tf.float32),
        transforms=row[None],
        output_shape=tf.shape(frames)[1:3],
        fill_value=_FILL,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return to_uint8(moved)


#: The operations of the paper, by name.
OPERATIONS = {
    "identity": _identity,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "solarize": _solarize,
    "sharpness": _sharpness,
    "brightness": _with_factor(adjust_brightness),
    "contrast": _with_factor(adjust_contrast),
    "color": _with_factor(adjust_saturation),
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
