"""What a network sees in a clip, as the frames of a video."""

import numpy as np

from keras_stss.evaluation.colors import full_length, wheel
from keras_stss.training.showing import drawing
from keras_stss.visualize import pictures

#: Side of a picture, and at most so many blocks beside the frame.
SIDE, BLOCKS = 240, 3
_GAP, _HEAD, _LINE, _WHEEL = 8, 26, 22, 56
_INK, _BLUE, _PALE = "#1d232a", "#1f6fb2", "#dfe5ea"
_SHOWN = 3


def overlay_frames(look):
    """Each frame of a clip beside its displacement maps and under its class map, above the predicted labels.

    Args:
        look: :class:`keras_stss.visualize.Look`.

    Returns:
        uint8 (T, H, W, 3). Of maps with several offsets the next frame's is shown, or else the nearest; the small wheel
        is the key to their directions.
    """
    panels = _panels(look)
    width = max(len(panels) * (SIDE + _GAP) + _GAP, 2 * (SIDE + _GAP) + _GAP)
    height = _HEAD + SIDE + _GAP + max(_LINE * len(look.ranking[:_SHOWN]), _WHEEL) + _GAP
    base = _base(look, [title for title, _ in panels], width, height)
    frames = np.repeat(base[None], len(look.clip), axis=0)
    if look.maps:
        top = _HEAD + SIDE + _GAP
        frames[:, top : top + _WHEEL, width - _WHEEL - _GAP : width - _GAP] = wheel(_WHEEL)
    for number, (_, shown) in enumerate(panels):
        left = _GAP + number * (SIDE + _GAP)
        frames[:, _HEAD : _HEAD + SIDE, left : left + SIDE] = shown
    return _with_progress(frames)


def _panels(look):
    """[(title, uint8 (T, SIDE, SIDE, 3))]"""
    size = (SIDE, SIDE)
    clip = pictures.resized(look.clip, size)
    panels = [("", clip)]
    for found in look.maps[:BLOCKS]:
        place = _next_frame(found.offsets)
        if place is not None:
            largest = full_length(found.displacement[:, :, :, found.moving], pictures.LEAST)
            colors = pictures.motion_colors(found, size, place, largest)[_nearest(found.frames, len(clip))]
            panels.append((f"{found.name}, t{found.offsets[place]:+d}", _edged(colors)))
    for found in look.changes[: BLOCKS + 1 - len(panels)]:
        colors = pictures.change_colors(found, size)[_nearest(found.frames, len(clip))]
        panels.append((f"{found.name}, change", colors))
    cam = look.cams[0]
    heat = pictures.resized_heat(cam.heat, size)
    panels.append((f"Grad-CAM, {cam.stage}: {look.labels[cam.label]}", pictures.overlay(clip, heat)))
    return panels


def _next_frame(offsets):
    """Place of the offset that says most of the motion forwards; None where there is none but 0."""
    moving = [place for place, offset in enumerate(offsets) if offset]
    return min(moving, key=lambda place: (abs(offsets[place]), -offsets[place]), default=None)


def _nearest(frames, count):
    """For each of ``count`` frames the place of the nearest in ``frames``."""
    return np.abs(np.asarray(frames)[None] - np.arange(count)[:, None]).argmin(1)


def _edged(panel):
    """With a thin line around what may be white."""
    return np.pad(panel[:, 1:-1, 1:-1], [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=210)


def _base(look, titles, width, height):
    """The page behind the pictures: titles above, and the labels with their bars below."""
    drawn = drawing.figure(width, height)

    def write(x, y, text, size=9.0, **options):
        drawn.text(x / width, 1 - y / height, text, fontsize=size, va="center", parse_math=False, color=_INK, **options)

    for number, title in enumerate(titles):
        write(_GAP + number * (SIDE + _GAP), _HEAD / 2, drawing.shortened(title, SIDE))
    for number, (label, probability) in enumerate(look.ranking[:_SHOWN]):
        middle = _HEAD + SIDE + _GAP + (number + 0.5) * _LINE
        bars = drawn.add_axes([_GAP / width, 1 - (middle + 7) / height, 120 / width, 14 / height])
        bars.barh([0], [1], color=_PALE)
        bars.barh([0], [probability], color=_BLUE)
        bars.set(xlim=(0, 1), ylim=(-0.4, 0.4))
        bars.axis("off")
        write(_GAP + 128, middle, f"{probability:.1%}")
        write(
            _GAP + 180,
            middle,
            drawing.shortened(label, width - 200 - _WHEEL),
            weight="bold" if number == 0 else "normal",
        )
    return drawing.pixels(drawn)


def _with_progress(frames):
    """A line at the lower edge that grows with time."""
    count, _, width = frames.shape[:3]
    for number, frame in enumerate(frames):
        frame[-3:, : round(width * (number + 1) / count)] = (31, 111, 178)
    return frames
