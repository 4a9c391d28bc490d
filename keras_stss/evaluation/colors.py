"""Displacements as colours, with the colour wheel that is customary for optical flow."""

import math

import numpy as np

#: The wheel of Baker et al., "A database and evaluation methodology for optical flow": a colour, and how many of the
#: wheel's 55 steps lead from it to the next one.
WHEEL = (
    ((255, 0, 0), 15),  # red: to the right
    ((255, 255, 0), 6),
    ((0, 255, 0), 4),
    ((0, 255, 255), 11),
    ((0, 0, 255), 13),
    ((255, 0, 255), 6),
)


def displacement_colors(displacement, largest):
    """Colours of displacements: the hue tells the direction, the saturation how far.

    To the right is red, down is yellow, left is light blue, up is violet; no displacement is white. What is longer
    than ``largest`` keeps its hue and is darker.

    Args:
        displacement: (…, 2), horizontal (to the right) and vertical (downwards).
        largest: length that has the full colour, positive.

    Returns:
        uint8 RGB (…, 3); grey where a displacement is not finite.
    """
    if not largest > 0:
        raise ValueError(f"largest must be positive. Received: largest={largest}")
    displacement = np.asarray(displacement, "float64") / largest
    known = np.isfinite(displacement).all(-1, keepdims=True)
    displacement = np.where(known, displacement, 0.0)
    length = np.linalg.norm(displacement, axis=-1, keepdims=True)  # (…, 1)
    colors, steps = zip(*WHEEL)
    corners = np.cumsum([0, *steps])
    turn = np.arctan2(displacement[..., 1], displacement[..., 0]) / (2 * np.pi) % 1.0  # of the wheel, clockwise
    rows = np.asarray([*colors, colors[0]], "float64") / 255
    hue = np.stack([np.interp(turn * corners[-1], corners, row) for row in rows.T], axis=-1)  # (…, 3)
    shade = np.where(length <= 1, 1 - length * (1 - hue), 0.75 * hue)
    return np.round(255 * np.where(known, shade, 0.5)).astype("uint8")


def wheel(side):
    """The key to the colours: uint8 (side, side, 3), where each place has the colour of the way to it from the middle.

    White outside of the circle, whose edge has the full colours.
    """
    axis = np.linspace(-1, 1, side)
    displacement = np.stack(np.meshgrid(axis, axis), axis=-1)  # (side, side, 2)
    inside = np.linalg.norm(displacement, axis=-1, keepdims=True) <= 1
    return np.where(inside, displacement_colors(displacement, 1.0), np.uint8(255))


def full_length(displacement, least=1e-3):
    """The length for the full colour: what 99 % of the displacements do not exceed, and no less than ``least``.

    Args:
        displacement: (…, 2); those that are not finite do not count.
        least: positive; what counts as no motion at all stays pale.
    """
    length = np.linalg.norm(displacement, axis=-1)
    length = length[np.isfinite(length)]
    return max(float(np.quantile(length, 0.99)), least) if length.size else max(least, 1.0)


def as_large(maps, size):
    """Maps (T, H', W', …), each position as a rectangle of a picture of (H, W)."""
    y, x = (np.arange(new) * old // new for new, old in zip(size, maps.shape[1:3]))
    return maps[:, y][:, :, x]


def short(value):
    """A positive number with two digits that count."""
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"
