"""Which part of a frame a view shows: functions of the frame's size and of a seed, without any pixels.

A box is drawn in the *resized* frame, as the papers describe it, and mapped to the frame's own pixels. A window is that
result: int32 (4,), top, left, height and width in the frame's own pixels.
"""

import math

import tensorflow as tf

# Places in quarters of the room that a box has, (down, right): the four corners and the centre, the middles of the
# sides, and half way from the centre to each corner.
_FIVE_PLACES = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))
_CORNER_PLACES = (*_FIVE_PLACES, (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3))
_ATTEMPTS, _ASPECT = 10, (3 / 4, 4 / 3)
_AREA = 5  # what a seed is folded with, see training.py: area_box takes more draws than lie before the mirror's


def multi_scale_window(size, seed, resize, scales):
    """A window of random height and width, anywhere in the frame.

    Height and width are the short side of the resized frame times an entry of ``scales`` each, the two at most one step
    apart in the sorted list (multi-scale cropping of Wang et al., Temporal Segment Networks, ECCV 2016, with a uniform
    position).

    Args:
        size: int32 (2,), height and width of the frame.
        seed: int (2,).
        resize: (height, width) in pixels, or the short side as one number (the aspect ratio is kept).
        scales: shares of the short side, between 0 and 1.
    """
    virtual = _resized(size, resize)
    draws = tf.random.stateless_uniform([4], seed)  # the last one is the mirror's, see mirror_draw
    short_side = tf.cast(tf.reduce_min(virtual), tf.float64)
    box = tf.cast(tf.floor(short_side * tf.gather(_steps(scales), _pair(draws[0], scales))), tf.int32)
    box = tf.maximum(box, 1)
    return _window(size, virtual, box, pick(draws[1:3], virtual - box + 1))


def mirror_draw(seed):
    """The draw from [0, 1) that says whether a view of this seed is mirrored: below 1/2."""
    return tf.random.stateless_uniform([4], seed)[3]


def corner_window(size, seed, resize, crop, scales):
    """A window of random height and width in one of 13 places (TSN's multi-scale corner crop).

    Height and width as in :func:`multi_scale_window`, but a side within 2 pixels of ``crop`` becomes ``crop``. The
    places are the corners, the centre, the middles of the sides, and half way from the centre to the corners.
    (``GroupMultiScaleCrop`` in the code of TSN and TSM, with ``more_fix_crop``.)
    """
    virtual = _resized(size, resize)
    draws = tf.random.stateless_uniform([2], seed)
    sides = tf.cast(tf.floor(tf.cast(tf.reduce_min(virtual), tf.float64) * _steps(scales)), tf.int32)
    sides = tf.maximum(tf.where(tf.abs(sides - crop) < 3, crop, sides), 1)
    box = tf.gather(sides, _pair(draws[0], scales))
    place = tf.gather(tf.constant(_CORNER_PLACES), pick(draws[1], len(_CORNER_PLACES)))
    return _window(size, virtual, box, _quarters(virtual, box, place))


def random_scale_window(size, seed, resize, crop, short_sides):
    """A window of ``crop`` x ``crop`` anywhere in the resized frame, after that is scaled once more at random.

    The new short side is drawn from all whole numbers of ``short_sides``, (smallest, largest), the smallest at least
    ``crop`` (Simonyan and Zisserman, VGG, ICLR 2015).
    """
    draws = tf.random.stateless_uniform([3], seed)
    smallest, largest = short_sides
    virtual = _scaled(_resized(size, resize), smallest + pick(draws[0], largest - smallest + 1))
    box = tf.constant([crop, crop])
    return _window(size, virtual, box, pick(draws[1:], virtual - box + 1))


def random_resized_window(size, seed, resize, area):
    """A window of random area and aspect ratio, anywhere in the frame (Szegedy et al., CVPR 2015).

    ``area`` is the (smallest, largest) share of the resized frame; the ratio lies between 3/4 and 4/3.
    """
    virtual = _resized(size, resize)
    box, offset, _ = area_box(virtual, fold(seed, _AREA), area, _ASPECT)
    return _window(size, virtual, box, offset)


def center_window(size, resize, crop):
    """The window of ``crop`` x ``crop`` in the centre; whole frames of that size, whatever ``resize`` says."""
    virtual = _resized(size, resize)
    # The whole frame as the box of a frame of its own size: nothing to crop, nothing to resize.
    virtual = tf.where(tf.reduce_all(size == crop), size, virtual)
    box = tf.constant([crop, crop])
    return _window(size, virtual, box, (virtual - box) // 2)


def side_windows(size, resize):
    """Three squares as large as the short side of the resized frame: start, middle and end of its longer side."""
    virtual = _resized(size, resize)
    box = tf.repeat(tf.reduce_min(virtual), 2)  # the short side leaves it no room to move
    return [_window(size, virtual, box, _quarters(virtual, box, tf.constant([n, n]))) for n in (0, 2, 4)]


def five_windows(size, resize, crop):
    """The windows of ``crop`` x ``crop`` in the four corners and in the centre."""
    virtual, box = _resized(size, resize), tf.constant([crop, crop])
    return [_window(size, virtual, box, _quarters(virtual, box, tf.constant(place))) for place in _FIVE_PLACES]


def area_box(size, seed, area, aspect):
    """A box of a random share of the frame and a random aspect ratio, anywhere in it.

    The share is uniform, the ratio of width to height uniform in its logarithm. The first of ten draws that fits
    counts. Where none does, the box is the largest one in the centre whose ratio keeps to the bounds.

    Args:
        size: int32 (2,), height and width of the frame.
        seed: int (2,).
        area: (smallest, largest) share.
        aspect: (smallest, largest) ratio of width to height.

    Returns:
        int32 (2,) (height, width), int32 (2,) offset (top, left), and whether one of the draws fitted.
    """
    draws = tf.cast(tf.random.stateless_uniform([_ATTEMPTS, 4], seed), tf.float64)
    low, high = (math.log(bound) for bound in aspect)
    share = area[0] + draws[:, 0] * (area[1] - area[0])
    ratio = tf.exp(low + draws[:, 1] * (high - low))
    pixels = share * tf.reduce_prod(tf.cast(size, tf.float64))
    boxes = tf.cast(tf.round(tf.sqrt(tf.stack([pixels / ratio, pixels * ratio], -1))), tf.int32)  # (attempts, 2)
    fits = tf.reduce_all((boxes >= 1) & (boxes <= size), -1)
    found, first = tf.reduce_any(fits), tf.argmax(fits)
    height, width = tf.unstack(tf.cast(size, tf.float64))
    largest = tf.round(tf.minimum(tf.stack([height, width]), tf.stack([width / aspect[0], height * aspect[1]])))
    box = tf.where(found, boxes[first], tf.maximum(tf.cast(largest, tf.int32), 1))
    offset = tf.where(found, pick(draws[first, 2:], size - box + 1), (size - box) // 2)
    return box, offset, found


def pick(draw, count):
    """Uniform draws from [0, 1) -> whole numbers from 0 to count - 1."""
    count = tf.cast(count, tf.float64)
    return tf.cast(tf.minimum(tf.floor(tf.cast(draw, tf.float64) * count), count - 1), tf.int32)


def fold(seed, number):
    """A seed for another purpose, int64 (2,)."""
    return tf.random.fold_in(seed, tf.constant(number, tf.int64))


def parts_of(seed, number):
    """So many seeds, each int64 (2,), whose draws have nothing to do with one another."""
    # Of the same numbers as int32, TensorFlow makes others.
    return tf.unstack(tf.random.split(tf.cast(seed, tf.int64), number))


def _resized(size, resize):
    return _scaled(size, resize) if isinstance(resize, int) else tf.constant(list(resize), tf.int32)


def _scaled(size, to_short_side):
    """The size with that short side, rounded half up in whole numbers."""
    short_side = tf.reduce_min(size)
    return (2 * size * to_short_side + short_side) // (2 * short_side)


def _steps(scales):
    return tf.constant(sorted(scales), tf.float64)


def _pair(draw, scales):
    """Places of height and width in the sorted scales, at most one step apart: int32 (2,)."""
    pairs = [(i, j) for i in range(len(scales)) for j in range(len(scales)) if abs(i - j) <= 1]
    return tf.gather(tf.constant(pairs), pick(draw, len(pairs)))


def _quarters(size, box, place):
    """Offset of a box that stands so many quarters of its room (down, right), each quarter rounded down."""
    return (size - box) // 4 * place


def _window(native, virtual, box, offset):
    """The box (height, width) at offset (top, left) of the resized frame, in the frame's own pixels."""
    ratio = tf.cast(native, tf.float64) / tf.cast(virtual, tf.float64)
    start = tf.cast(tf.round(tf.cast(offset, tf.float64) * ratio), tf.int32)
    size = tf.maximum(tf.cast(tf.round(tf.cast(box, tf.float64) * ratio), tf.int32), 1)
    size = tf.minimum(size, native)
    return tf.concat([tf.minimum(start, native - size), size], 0)
