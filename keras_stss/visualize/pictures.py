"""Pictures of what a network sees, as uint8 arrays (H, W, 3)."""

import matplotlib
import numpy as np
import tensorflow as tf

from keras_stss.evaluation.colors import as_large, displacement_colors, full_length, short, wheel
from keras_stss.training.showing import drawing
from keras_stss.training.showing.drawing import Row

#: Pixels of the colour wheel, and of the bar beside other maps.
WHEEL, BAR = 112, (112, 18)
#: Cells: shorter displacements are pale, however still the clip.
LEAST = 1.0
#: Sides of the frames around a point's similarity, in pixels.
LARGE = 144
_EDGE = 210  # grey around maps that may be white
_NONE = 225  # grey of what there is not
_GAP = 6
_MARK, _SHADE = (255, 40, 40), (0, 0, 0)
#: Of similarities and confidences; of heat.
_SEQUENTIAL, _HEAT = "viridis", "inferno"


def motion_picture(clip, found, caption=""):
    """The frames of a clip and, below, a row of coloured displacements for each other frame that they are compared to.

    Args:
        clip: uint8 (T, H, W, 3), the frames that the network saw.
        found: :class:`keras_stss.visualize.MotionMap`.
        caption: above the frames.

    Returns:
        uint8 (H', W', 3). Colours are those of :func:`keras_stss.evaluation.colors.displacement_colors`; the wheel on
        the right is their key. Grey where the clip has no such frame.
    """
    times, rows = _frames_row(clip, found.frames, caption)
    largest = full_length(found.displacement[:, :, :, found.moving], LEAST)
    for place in found.moving:
        moved = found.displacement[times][..., place, :]
        colors = displacement_colors(moved, largest)  # (T', H', W', 3)
        colors[np.isnan(moved).any(-1)] = _NONE
        rows.append(_maps_row(colors, clip, found.offsets[place]))
    key = f"full colour:\n{short(largest)} cells\n= {_pixels(largest, found.cell)} pixels\nof the view"
    return drawing.sheet(rows, wheel(WHEEL), key)


def confidence_picture(clip, found, caption=""):
    """As :func:`motion_picture` for the confidences: dark blue is the lowest of the clip, yellow the highest."""
    times, rows = _frames_row(clip, found.frames, caption)
    values = found.confidence[..., found.moving]
    low, high = _range(values)
    for place in found.moving:
        rows.append(_maps_row(_mapped(found.confidence[times][..., place], low, high), clip, found.offsets[place]))
    return drawing.sheet(rows, _bar(_SEQUENTIAL), f"top: {high:.2f}\nbottom: {low:.2f}")


def change_picture(clip, found, caption=""):
    """The frames, and below how much the features change to the next frame: bright is much."""
    times, rows = _frames_row(clip, found.frames, caption)
    rows.append(Row(drawing.strip(change_colors(found, clip.shape[1:3])[times])))
    return drawing.sheet(rows, _bar(_HEAT), f"top: {_most(found):.2g}\nbottom: 0")


def similarity_picture(clip, found, caption=""):
    """The self-similarity of a point, offset by offset.

    Args:
        clip: uint8 (T, H, W, 3), the frames that the network saw.
        found: :class:`keras_stss.visualize.PointSimilarity`.
        caption: above the frames.

    Returns:
        uint8 (H', W', 3). First row: the frames t+l, the cell of the point marked in frame t, the window in all of
        them. Second: the (U, V) maps in the place of the window. Third: the maps alone, the most similar place framed.
        Grey are places outside of the frame.
    """
    inside = _inside(found, clip.shape[1:3])
    values = np.where(inside, found.volume, np.nan)
    low, high = _range(values[[frame is not None for frame in found.frames]])
    scale = max(1, round(LARGE / max(clip.shape[1:3])))
    columns, words = [], [_when(offset, frame) for offset, frame in zip(found.offsets, found.frames)]
    if 0 not in found.offsets:  # the frame of the point, which is compared with the others alone
        own = _marked(clip[found.point[2]].repeat(scale, 0).repeat(scale, 1), None, found, scale)
        columns, words = [[own, *(2 * [np.full_like(own, 255)])]], [f"frame {found.point[2]}", *words]
    for offset, frame, each in zip(found.offsets, found.frames, values):
        if frame is None:
            columns.append(3 * [np.full((*(side * scale for side in clip.shape[1:3]), 3), _NONE, "uint8")])
            continue
        large = clip[frame].repeat(scale, 0).repeat(scale, 1)
        box, colors = [side * scale for side in found.box], _mapped(each, low, high)  # (U, V, 3)
        cell = None if offset else found
        shown = (_marked(picture, box, cell, scale) for picture in (large, _laid_over(large, colors, box)))
        columns.append([*shown, _square(_best_framed(colors, each), large.shape[:2])])
    plain, laid, alone = (_side_by_side(pictures) for pictures in zip(*columns))
    head = _words(words, plain.shape[1])
    rows = [Row(np.concatenate([head, plain]), caption), Row(laid), Row(alone)]
    return drawing.sheet(rows, _bar(_SEQUENTIAL), f"similarity\ntop: {high:.2f}\nbottom: {low:.2f}")


def grad_cam_picture(clip, maps, captions):
    """The frames, and below them a row of frames under the heat of each class map.

    Args:
        clip: uint8 (T, H, W, 3).
        maps: list of :class:`keras_stss.visualize.ClassMap`.
        captions: a text for the frames, then one for each map.
    """
    times = drawing.shown_frames(len(clip))
    rows = [Row(drawing.strip(clip[times]), captions[0])]
    for each, text in zip(maps, captions[1:]):
        rows.append(Row(drawing.strip(overlay(clip[times], each.heat[times])), text))
    return drawing.sheet(rows, _bar("turbo"), "top: most\nof the clip\nbottom: none")


def overlay(frames, heat):
    """Frames under heat: the hotter, the less of the frame is seen.

    Args:
        frames: uint8 (T, H, W, 3).
        heat: (T, H, W) in [0, 1].
    """
    colors = matplotlib.colormaps["turbo"](heat)[..., :3] * 255
    share = (0.15 + 0.5 * heat)[..., None]
    return np.round(frames * (1 - share) + colors * share).astype("uint8")


def motion_colors(found, size, place, largest):
    """The displacements of one offset as pictures of a size: uint8 (T', H, W, 3)."""
    moved = found.displacement[..., place, :]
    colors = displacement_colors(moved, largest)
    colors[np.isnan(moved).any(-1)] = _NONE
    return as_large(colors, size)


def change_colors(found, size):
    """Changes as pictures of a size: uint8 (T', H, W, 3)."""
    return as_large(_mapped(found.strength, 0.0, _most(found), _HEAT), size)


def resized_heat(heat, size):
    """Heat (T, H, W) at another (H, W)."""
    return np.asarray(tf.image.resize(heat[..., None], size)[..., 0])


def resized(frames, size):
    """uint8 frames (T, H, W, 3) at another (H, W): smooth where they grow, means where they shrink."""
    found = tf.image.resize(frames, size, method="bicubic", antialias=True)
    return np.clip(np.round(np.asarray(found)), 0, 255).astype("uint8")


def _frames_row(clip, frames, caption):
    """(times of the map that are shown, [the row of their frames])."""
    times = drawing.shown_frames(len(frames))
    return times, [Row(drawing.strip(clip[frames[times]]), caption)]


def _maps_row(colors, clip, offset):
    return Row(drawing.strip(as_large(colors, clip.shape[1:3]), edge=_EDGE), word=f"t{offset:+d} ")


def _mapped(values, low, high, name=_SEQUENTIAL):
    """Values as colours; grey where they are no number."""
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    colors = np.round(matplotlib.colormaps[name](np.where(np.isfinite(share), share, 0))[..., :3] * 255)
    return np.where(np.isfinite(values)[..., None], colors, _NONE).astype("uint8")


def _most(found):
    """What 99.5 % of the changes do not exceed: single cells do not make the others dark."""
    return max(float(np.quantile(found.strength, 0.995)), 1e-12)


def _range(values):
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def _bar(name):
    """A key from the lowest value, at the bottom, to the highest."""
    column = matplotlib.colormaps[name](np.linspace(1, 0, BAR[0]))[:, None, :3]
    side = (WHEEL - BAR[1]) // 2  # as wide as the text below it needs
    return np.pad(
        np.round(np.repeat(column, BAR[1], axis=1) * 255).astype("uint8"),
        [(0, 0), (side, side), (0, 0)],
        constant_values=255,
    )


def _pixels(cells, cell):
    """So many cells in pixels, downwards and to the right where these differ."""
    high, wide = (short(cells * side) for side in cell)
    return wide if high == wide else f"{wide} × {high}"


def _when(offset, frame):
    return ", ".join([f"t{offset:+d}"] * bool(offset) + [f"frame {frame}"] * (frame is not None))


def _laid_over(picture, colors, box):
    """A picture with coloured cells in the place of the box, as far as it lies inside."""
    top, left, height, width = (round(side) for side in box)
    large = as_large(colors[None], (height, width))[0]
    y, x = max(top, 0), max(left, 0)
    part = large[y - top : picture.shape[0] - top, x - left : picture.shape[1] - left]
    made = picture.copy()
    inside = made[y : y + part.shape[0], x : x + part.shape[1]]
    inside[:] = np.round(0.35 * inside + 0.65 * part)
    return made


def _marked(picture, box, found, scale):
    """A picture with the window's frame and that of the point's cell; None of either leaves it out."""
    made = picture.copy()
    if box is not None:
        _outline(made, *box, color=(255, 255, 255))
    if found is not None:
        (high, wide), (_, y, x) = found.cell, found.place
        _outline(made, y * high * scale, x * wide * scale, high * scale, wide * scale, color=_MARK)
    return made


def _inside(found, size):
    """Which places (U, V) of a point's window lie in the map, for frames of a size (H, W)."""
    rows, columns = found.volume.shape[1:]
    down = found.place[1] + np.arange(rows) - rows // 2
    right = found.place[2] + np.arange(columns) - columns // 2
    high, wide = (round(side / cell) for side, cell in zip(size, found.cell))
    return ((down >= 0) & (down < high))[:, None] & ((right >= 0) & (right < wide))


def _outline(picture, top, left, height, width, color):
    """Draws a rectangle's line, with a dark one beside it, into a picture; what lies outside is not seen."""
    for inset, tone in ((1, _SHADE), (0, color)):
        y, x = round(top) + inset, round(left) + inset
        y2, x2 = round(top + height) - 1 - inset, round(left + width) - 1 - inset
        rows, columns = picture.shape[:2]
        for line in (y, y2):
            if 0 <= line < rows:
                picture[line, max(x, 0) : max(x2 + 1, 0)] = tone
        for line in (x, x2):
            if 0 <= line < columns:
                picture[max(y, 0) : max(y2 + 1, 0), line] = tone
    return picture


def _best_framed(colors, values):
    """The map of a window, each place a square of some pixels, and a line around the highest."""
    side = max(3, LARGE // max(values.shape))
    large = colors.repeat(side, 0).repeat(side, 1)
    y, x = np.unravel_index(np.nanargmax(values), values.shape)
    return _outline(large, y * side, x * side, side, side, color=_MARK)


def _square(picture, size):
    """A picture in the middle of a white one of a size, without what does not fit."""
    picture = picture[: size[0], : size[1]]
    above, left = ((side - own) // 2 for side, own in zip(size, picture.shape))
    below, right = size[0] - above - picture.shape[0], size[1] - left - picture.shape[1]
    return np.pad(picture, [(above, below), (left, right), (0, 0)], constant_values=255)


def _words(words, width):
    """A line of words, each above the left edge of its picture of several side by side."""
    drawn = drawing.figure(width, 18)
    for number, word in enumerate(words):
        drawn.text(number * (width + _GAP) / len(words) / width, 0.5, word, fontsize=9, va="center")
    return drawing.pixels(drawn)


def _side_by_side(pictures):
    gap = np.full((pictures[0].shape[0], _GAP, 3), 255, "uint8")
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)
