"""Things and how they are drawn. Geometry is in frame heights: y from 0 (top) to 1 (bottom)."""

from __future__ import annotations

import dataclasses

import numpy as np

COLOURS = {
    "red": (0.85, 0.12, 0.12), "blue": (0.12, 0.25, 0.85), "green": (0.1, 0.62, 0.18),
    "yellow": (0.95, 0.86, 0.12), "orange": (0.96, 0.5, 0.08), "purple": (0.5, 0.14, 0.65),
    "pink": (0.97, 0.5, 0.72), "turquoise": (0.1, 0.75, 0.75), "white": (0.96, 0.96, 0.96),
    "black": (0.12, 0.12, 0.12),
}  # fmt: skip
SHAPES = ("ball", "box", "triangle", "star", "ring", "cross")
TEXTURES = ("plain", "striped", "checked", "spotted")


@dataclasses.dataclass(frozen=True, eq=False)
class Thing:
    """One object: its look, and per frame (arrays of shape (frames,)) its centre, diameter and angle.

    `x`, `y`, `size` are in frame heights, `angle` in radians; a slab is `size` wide and `length` long.
    """

    shape: str
    texture: str
    colour: str
    rgb: tuple
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    angle: np.ndarray
    length: float = 0.0

    @property
    def phrase(self):
        """What an annotator would call it, such as "a red ball"."""
        words = f"{'' if self.texture == 'plain' else self.texture + ' '}{self.colour} {self.shape}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def colour_apart(rng, others, least):
    """Name and jittered rgb of a random colour at least `least` away from each rgb in `others`."""
    far = [n for n, rgb in COLOURS.items() if np.linalg.norm(np.subtract(rgb, others), axis=1).min() > least]
    name = str(rng.choice(far or list(COLOURS)))
    return name, tuple(np.clip(np.array(COLOURS[name]) + rng.uniform(-0.05, 0.05, 3), 0, 1))


def _distance(shape, x, y, tall):
    """Signed distance, roughly, to a shape of half width 1 (a slab: half length `tall`); inside < 0."""
    if shape == "slab":
        return np.maximum(np.abs(x) - 1, np.abs(y) - tall)
    if shape == "box":
        return np.maximum(np.abs(x), np.abs(y)) - 0.82
    if shape == "triangle":
        return np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.5
    if shape == "cross":
        wide, high = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(wide - 0.95, high - 0.36), np.maximum(high - 0.95, wide - 0.36))
    radius = np.hypot(x, y)
    if shape == "ring":
        return np.abs(radius - 0.7) - 0.27
    if shape == "star":
        return radius - 0.74 - 0.24 * np.cos(5 * np.arctan2(y, x))
    return radius - 0.95


def paint(video, thing, camera):
    """Draw a thing into `video` (frames, H, W, 3), float32, in place; only inside its bounding box."""
    height, width = video.shape[1:3]
    x, y = (thing.x - camera[:, 0]) * height, (thing.y - camera[:, 1]) * height
    half = thing.size * height / 2
    reach = (np.hypot(half, thing.length * height / 2) if thing.shape == "slab" else 1.3 * half) + 2
    left, right = int(max((x - reach).min(), 0)), int(min((x + reach).max() + 1, width))
    top, bottom = int(max((y - reach).min(), 0)), int(min((y + reach).max() + 1, height))
    if left >= right or top >= bottom:
        return

    tracks = [x, y, half, np.cos(thing.angle), np.sin(thing.angle)]
    x, y, half, cos, sin = np.array(tracks, np.float32)[..., None, None]
    across = (np.arange(left, right, dtype=np.float32) + 0.5 - x) / half
    down = (np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - y) / half
    u, v = cos * across + sin * down, cos * down - sin * across
    distance = _distance(thing.shape, u, v, thing.length / thing.size[0]) * half  # in pixels
    mask = np.clip(0.5 - distance, 0, 1)
    shade = 1 - 0.3 * np.clip(2 + distance, 0, 1)  # a darker rim parts things
    if thing.texture == "striped":
        shade -= 0.35 * np.clip(np.sin(u * 6.3) * 3 + 0.5, 0, 1)
    elif thing.texture == "checked":
        shade -= 0.35 * np.clip(np.sin(u * 5) * np.sin(v * 5) * 6 + 0.5, 0, 1)
    elif thing.texture == "spotted":
        shade -= 0.35 * np.clip((np.cos(u * 7) + np.cos(v * 7) - 0.9) * 3, 0, 1)
    area = video[:, top:bottom, left:right]
    area += mask[..., None] * (shade[..., None] * np.asarray(thing.rgb, np.float32) - area)
