"""Views of a clip: the crop, scale and mirror of training, and the crops of testing.

Stock TensorFlow operations that work eagerly, in ``tf.data`` and in an exported graph, on clips whose size is known or
not. Pixels are cropped and resized once, and those that already have the right size are left as they are.
"""

import re

import tensorflow as tf

from keras_stss.data.augment.windows import (
    center_window,
    five_windows,
    mirror_draw,
    multi_scale_window,
    side_windows,
)

# Letters on either side make another word (upright, copyright); digits, hyphens and underscores do not.
_SIDES = re.compile(
    r"(?<![^\W\d_])(left|right|clockwise|anticlockwise|counterclockwise)(wards?|most|side|hand(?:ed)?)?(?![^\W\d_])",
    re.IGNORECASE,
)

_PLAIN = (8, 7)  # most that a side may shrink, by this ratio, without antialias


def may_flip(label_text):
    """Whether a clip with this label means the same in the mirror: the text names no side and no turn.

    Left, right, clockwise, anticlockwise and counterclockwise count, as whole words in any case ('copyright' does not;
    'turn_left', 'SwipeRight', 'leftward' and 'leftmost' do). Keyed on the text, since class indices differ between
    label lists.
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
    window = multi_scale_window(frame_size(frames), seed, resize, scales)
    return mirror(fit(cut(frames, window), crop), seed, flip)


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
    return fit(cut(frames, center_window(frame_size(frames), resize, crop)), crop)


def crop_views(frames, resize, crop, crops):
    """The testing views of a clip, as in the code of TSN and TSM.

    - 1: :func:`center_view`.
    - 3: squares as large as the short side of the resized frame, at the start, in the middle and at the end of its
      longer side, scaled to ``crop`` x ``crop``.
    - 5: squares of the size ``crop`` in the four corners and in the centre.
    - 10: those five, then the five in the mirror. Labels that name a side mean something else there: such data sets
      want at most 5.

    Args:
        frames: uint8 (T, H, W, 3).
        resize: (height, width) in pixels, or the short side as one number (the aspect ratio is kept).
        crop: side of the result in pixels.
        crops: how many, 1, 3, 5 or 10.

    Returns:
        uint8 (crops, T, crop, crop, 3).
    """
    size = frame_size(frames)
    if crops == 1:
        windows = [center_window(size, resize, crop)]
    elif crops == 3:
        windows = side_windows(size, resize)
    elif crops in (5, 10):
        windows = five_windows(size, resize, crop)
    else:
        raise ValueError(f"crops must be 1, 3, 5 or 10. Received: crops={crops}")
    views = tf.stack([fit(cut(frames, window), crop) for window in windows])
    return tf.concat([views, tf.reverse(views, [3])], 0) if crops == 10 else views


def frame_size(frames):
    """Height and width, int32 (2,)."""
    return tf.shape(frames)[1:3]


def cut(frames, window):
    """The part of all frames that a window shows."""
    top, left, height, width = tf.unstack(window)
    # Faster than ranges as an index.
    part = tf.slice(frames, tf.stack([0, top, left, 0]), tf.stack([-1, height, width, -1]))
    return tf.ensure_shape(part, [frames.shape[0], None, None, frames.shape[3]])


def fit(frames, crop):
    """Frames scaled to ``crop`` x ``crop``, uint8 (T, crop, crop, 3); such frames keep their pixels.

    Bilinear, with antialias where a side shrinks to less than 7/8.
    """
    view = tf.cond(tf.reduce_all(frame_size(frames) == crop), lambda: frames, lambda: _resize(frames, crop))
    return tf.ensure_shape(view, [frames.shape[0], crop, crop, 3])


def mirror(view, seed, flip):
    """The view or, where ``flip`` allows, for half of the seeds its mirror image."""
    mirrored = tf.logical_and(flip, mirror_draw(seed) < 0.5)
    return tf.cond(mirrored, lambda: _reversed_rows(view), lambda: view)


def _resize(frames, crop):
    # Shrinking without antialias skips pixels, and fine motion flickers. Enlarging, both give the same, and the plain
    # one takes a third of the time; shrinking to 7/8 they differ by less than the codecs do.
    largest = crop * _PLAIN[0] // _PLAIN[1]
    return tf.cond(
        tf.reduce_any(tf.shape(frames)[1:3] > largest),
        lambda: _shrink(frames, crop),
        lambda: _rounded(tf.image.resize(frames, [crop, crop])),
    )


def _shrink(frames, crop):
    """Resized with antialias; the frames' channels side by side, as the operation takes them one after the other."""
    time, height, width, channels = tf.unstack(tf.shape(frames))
    folded = tf.reshape(tf.transpose(frames, [1, 2, 0, 3]), [1, height, width, time * channels])  # (1, H, W, T·C)
    folded = _rounded(tf.image.resize(folded, [crop, crop], antialias=True))
    return tf.transpose(tf.reshape(folded, [crop, crop, time, channels]), [2, 0, 1, 3])  # (T, crop, crop, C)


def _rounded(pixels):
    # Means of bytes, so there is nothing to clip.
    return tf.cast(tf.round(pixels), tf.uint8)


def _reversed_rows(view):
    # As one stack of rows of three numbers: for that shape alone TensorFlow has a fast way.
    rows = tf.reshape(view, tf.concat([[-1], tf.shape(view)[-2:]], 0))
    return tf.ensure_shape(tf.reshape(tf.reverse(rows, [1]), tf.shape(view)), view.shape)
