"""Views of a clip: the crop, scale and mirror of training, and the centre view of testing.

Stock TensorFlow operations that work eagerly, in ``tf.data`` and in an exported graph, on clips whose size is known or
not. A crop is taken in the *resized* frame, as the papers describe it, but mapped to the clip's own pixels: those are
cropped and resized once, and pixels that already have the right size are left as they are.
"""

import re

import tensorflow as tf

# Letters on either side make another word (upright, copyright); digits, hyphens and underscores do not.
_SIDES = re.compile(
    r"(?<![^\W\d_])(left|right|clockwise|anticlockwise|counterclockwise)(wards?)?(?![^\W\d_])", re.IGNORECASE
)


def may_flip(label_text):
    """Whether a clip with this label means the same in the mirror: the text names no side and no turn.

    Left, right, clockwise, anticlockwise and counterclockwise count, as whole words in any case ('copyright' does not;
    'turn_left', 'SwipeRight' and 'leftward' do). Keyed on the text, since class indices differ between label lists.
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label_text)
    return _SIDES.search(words) is None


def random_view(frames, seed, resize, crop, scales, flip):
    """A random training view, the same for all frames of the clip.

    In the frame resized to ``resize``, height and width of a box are the short side times an entry of ``scales`` each,
    the two at most one step apart in the sorted list; the box lies anywhere in the frame and is scaled to
    ``crop`` x ``crop`` (multi-scale cropping of Wang et al., Temporal Segment Networks, ECCV 2016, with a uniform
    position). Where ``flip`` allows, half of the views are mirrored.

    Args:
        frames: uint8 (T, H, W, 3).
        seed: int32 or int64 (2,); the view is a function of it.
        resize: (height, width) in pixels, or the short side as one number (the aspect ratio is kept).
        crop: side of the result in pixels.
        scales: shares of the short side, between 0 and 1.
        flip: bool scalar, whether this clip may be mirrored.

    Returns:
        uint8 (T, crop, crop, 3).
    """
    native, virtual = _sizes(frames, resize)
    draws = tf.random.stateless_uniform([4], seed)
    steps = sorted(scales)
    pairs = [(h, w) for i, h in enumerate(steps) for j, w in enumerate(steps) if abs(i - j) <= 1]
    pair = tf.gather(tf.constant(pairs, tf.float64), _pick(draws[0], len(pairs)))  # (2,)
    short_side = tf.cast(tf.reduce_min(virtual), tf.float64)
    box = tf.maximum(tf.cast(tf.floor(short_side * pair), tf.int32), 1)
    view = _cut(frames, native, virtual, box, _pick(draws[1:3], virtual - box + 1), crop)
    mirrored = tf.logical_and(flip, draws[3] < 0.5)
    return tf.cond(mirrored, lambda: tf.reverse(view, [2]), lambda: view)


def center_view(frames, resize, crop):
    """The testing view: the centre ``crop`` x ``crop`` of the frame resized to ``resize``.

    Frames that already are ``crop`` x ``crop`` pass unchanged, whatever ``resize`` says: served models rely on it, so
    that a client may send views that are cut already.

    Args:
        frames: uint8 (T, H, W, 3).
        resize: (height, width) in pixels, or the short side as one number (the aspect ratio is kept).
        crop: side of the result in pixels.

    Returns:
        uint8 (T, crop, crop, 3).
    """
    native, virtual = _sizes(frames, resize)
    # The whole frame as the box of a frame of its own size: nothing to crop, nothing to resize.
    virtual = tf.where(tf.reduce_all(native == crop), native, virtual)
    box = tf.constant([crop, crop])
    return _cut(frames, native, virtual, box, (virtual - box) // 2, crop)


def _sizes(frames, resize):
    """Native and resized (height, width), int32 (2,) each."""
    native = tf.shape(frames)[1:3]
    if not isinstance(resize, int):
        return native, tf.constant(list(resize), tf.int32)
    short_side = tf.reduce_min(native)
    # Rounded half up, in whole numbers.
    return native, (2 * native * resize + short_side) // (2 * short_side)


def _pick(draw, count):
    """Uniform draws from [0, 1) -> whole numbers from 0 to count - 1."""
    count = tf.cast(count, tf.float64)
    return tf.cast(tf.minimum(tf.floor(tf.cast(draw, tf.float64) * count), count - 1), tf.int32)


def _cut(frames, native, virtual, box, offset, crop):
    """The box (height, width) at offset (top, left) of the resized frame, as uint8 (T, crop, crop, 3)."""
    ratio = tf.cast(native, tf.float64) / tf.cast(virtual, tf.float64)
    start = tf.cast(tf.round(tf.cast(offset, tf.float64) * ratio), tf.int32)
    size = tf.maximum(tf.cast(tf.round(tf.cast(box, tf.float64) * ratio), tf.int32), 1)
    size = tf.minimum(size, native)
    start = tf.minimum(start, native - size)
    cut = frames[:, start[0] : start[0] + size[0], start[1] : start[1] + size[1], :]
    view = tf.cond(tf.reduce_all(size == crop), lambda: cut, lambda: _resize(cut, crop))
    return tf.ensure_shape(view, [frames.shape[0], crop, crop, 3])


def _resize(frames, crop):
    # Shrinking without antialias skips pixels, and fine motion flickers; enlarging, both give the same and the plain
    # one takes a third of the time.
    resized = tf.cond(
        tf.reduce_any(tf.shape(frames)[1:3] > crop),
        lambda: tf.image.resize(frames, [crop, crop], antialias=True),
        lambda: tf.image.resize(frames, [crop, crop]),
    )
    return tf.saturate_cast(tf.round(resized), tf.uint8)
