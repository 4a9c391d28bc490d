"""What reading videos and folders of frames have in common: limits, the choice of frames, the window cut from them."""

import numpy as np

from keras_stss.data.buffers import buffers

# Beyond these a clip is a damaged header, an attack on memory or time, or a mistake.
MAX_PIXELS = 64_000_000  # a frame; twice an 8K one
MAX_RATIO = 50  # of a frame's sides: resized to a short side of 256, 100,000x1 pixels would take 20 GB
MAX_DECODED = 100_000_000_000  # pixels to decode for one clip: 27 minutes of 1080p, which take minutes
MAX_KEPT = 2**31  # bytes of the frames wanted: 21 of 8K


class ClipError(Exception):
    """A clip that cannot be read; the text is the reason, without the path."""


class Cutter:
    """Cuts the window out of every frame of a clip, all of which must have one size."""

    def __init__(self, window):
        self.window, self._size, self._box = window, None, None

    def box(self, height, width, count):
        """(top, left, height, width) for a frame of this size, None for all of it, of which ``count`` will be kept."""
        if self._size is None:
            self._size, self._box = (height, width), self.window and self._checked(height, width)
            kept_height, kept_width = self._box[2:] if self._box else self._size
            if count * kept_height * kept_width * 3 > MAX_KEPT:
                raise ClipError(f"{count} frames of {width}x{height} pixels take more than {MAX_KEPT / 2**30:.3g} GiB")
        elif self._size != (height, width):
            sizes = sorted([self._size, (height, width)])
            raise ClipError(f"frames of different sizes: {' and '.join(f'{w}x{h}' for h, w in sizes)}")
        return self._box

    def cut(self, picture, count):
        """The window's part of a picture."""
        box = self.box(*picture.shape[:2], count)
        if box is None:
            return picture
        top, left, height, width = box
        return picture[top : top + height, left : left + width]

    def _checked(self, height, width):
        box = self.window(height, width)
        if box is None:
            return None
        box = tuple(int(value) for value in box)
        top, left, box_height, box_width = box
        if top < 0 or left < 0 or not 0 < box_height <= height - top or not 0 < box_width <= width - left:
            raise ValueError(f"window must give a part of the {height}x{width} frame. Received: {box}")
        return box


class Kept:
    """The frames wanted of a clip, each copied to its place as it comes.

    Args:
        order: their names in order, which never falls; one that is there twice makes two frames.
    """

    def __init__(self, order):
        self._places, self.last = {}, order[-1]
        for place, name in enumerate(order):
            self._places.setdefault(name, []).append(place)
        self._count, self._missing, self._frames = len(order), set(order), None

    def __setitem__(self, name, picture):
        if self._frames is None:
            self._frames = buffers.empty((self._count, *picture.shape), picture.dtype)
        for place in self._places[name]:
            self._frames[place] = picture
        self._missing.discard(name)

    def __contains__(self, name):
        return name in self._places

    def __len__(self):
        """Number of different frames wanted."""
        return len(self._places)

    @property
    def is_full(self):
        return not self._missing

    @property
    def frames(self):
        """All of them as one array."""
        if self._missing:
            raise ClipError(f"damaged: frame {min(self._missing)} cannot be decoded")
        return self._frames


def chosen(choose, count):
    indices = np.asarray(choose(count))
    if indices.ndim != 1 or indices.size == 0 or indices.dtype.kind not in "iu":
        raise ValueError(f"choose must give a list of integers. Received: {indices!r}")
    if indices[0] < 0 or indices[-1] >= count or (np.diff(indices) < 0).any():
        raise ValueError(f"choose must give indices from 0 to {count - 1} that never fall. Received: {indices!r}")
    return indices.tolist()


def check_size(width, height):
    if int(width) * int(height) > MAX_PIXELS:
        raise ClipError(f"frames of {width}x{height} pixels; the limit is {MAX_PIXELS // 10**6} megapixels")
    if max(width, height) > MAX_RATIO * max(min(width, height), 1):
        raise ClipError(f"frames of {width}x{height} pixels; one side must not exceed {MAX_RATIO} times the other")


def check_work(frames, stream):
    width, height = stream.codec_context.width, stream.codec_context.height
    if frames * int(width) * int(height) > MAX_DECODED:
        raise ClipError(
            f"too long: {frames} frames of {width}x{height} pixels to decode, more than {MAX_DECODED // 10**9} "
            "gigapixels; give the part wanted (start and end), or cut the video"
        )
