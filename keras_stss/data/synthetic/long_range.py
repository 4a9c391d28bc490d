"""The embedded data set made harder: what belongs together lies up to three sampled frames apart.

A clip is an eighth long `SEGMENTS` times. It shows one, two or three scenes in turn, cut after every segment, as a
film that goes back and forth between two or three places; a scene rests while another one is shown. The view over all
of them moves alike, and the class is how it moves and how many scenes there are. Sampled at one frame a segment, a
frame is followed up one, two or three frames later, and all frames between are of other scenes, drawn independently:
nothing in them tells how the view moves. A single frame says nothing at all: a scene is a table full of things, seen
from anywhere at any angle, whatever the class.
Geometry is in frame heights, with the origin in the middle of the view; angles are in radians, y points down.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from keras_stss.data.synthetic.things import COLOURS, SHAPES, TEXTURES, Thing, paint

MOTIONS = (
    "Panning to the left",
    "Panning to the right",
    "Panning up",
    "Panning down",
    "Panning up and to the left",
    "Panning down and to the right",
    "Panning up and to the right",
    "Panning down and to the left",
    "Rolling clockwise",
    "Rolling anticlockwise",
)
CUTS = ("over one scene", "cutting between two scenes", "cutting between three scenes")
TEMPLATES = tuple(f"{motion}, {cuts}" for cuts in CUTS for motion in MOTIONS)
REVERSED = {index: index ^ 1 for index in range(len(TEMPLATES))}  # the next class, or the one before
# Those that are drawn forwards, and which way the view goes; it rolls where there is no way.
HEADINGS = {0: np.pi, 2: -np.pi / 2, 4: -np.pi * 3 / 4, 6: -np.pi / 4, 8: None}
SEGMENTS = 8

# Movement over a segment, in the time that a scene is shown.
STEP = (0.11, 0.17)  # of a pan: below a third of the frame, so that most of it is seen again
ROLL = (0.24, 0.36)  # of a roll
ASIDE, WANDER = 0.2, 0.1  # how far a pan may point aside, and one of its steps (radians)
DRIFT, TWIST = 0.025, 0.04  # of a roll's centre and of a pan's angle, over a segment

# A scene: so many things that hardly any ground is seen.
SIZE = (0.2, 0.46)  # diameter of a thing
DENSITY = 26  # things on an area of one frame height squared
NOISE, LIGHT = (0.01, 0.05), 0.15  # of the sensor; how far the light of a frame strays, in each colour


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """One scene and the camera over it: `x`, `y`, `angle` (n,) of the view at each of the `n` frames that show it.

    `seed` draws the scene.
    """

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Film:
    """All that decides a clip's pixels: `shown` (frames,) tells which of the `views` a frame is the next of.

    Where `reverse` is true the clip is what is described here, played backwards.
    """

    template: int
    views: tuple
    shown: np.ndarray
    seed: int
    reverse: bool
    placeholders: tuple = ()


def scenes_of(template):
    """How many scenes a class has: that many sampled frames lie between two of the same scene."""
    return template // len(MOTIONS) + 1


def plan_clip(index, rng, frames=16, aspect=1.0):
    """Draw the Film of one clip of class `index`, at `aspect` (width / height).

    The second class of a pair is planned as the first and marked `reverse`. ValueError where `frames` cannot be cut
    into equal segments.
    """
    if frames < SEGMENTS or frames % SEGMENTS:
        raise ValueError(f"frames must be a multiple of {SEGMENTS}. Received: frames={frames!r}")
    motion, scenes = index % len(MOTIONS) & ~1, scenes_of(index)
    shown = np.arange(frames) * SEGMENTS // frames % scenes
    views = tuple(_view(rng, motion, int((shown == scene).sum()), frames // SEGMENTS) for scene in range(scenes))
    return Film(index, views, shown, int(rng.integers(2**62)), index % 2 == 1)


def _view(rng, motion, frames, segment):
    """The View of a scene that is shown for `frames` frames, `segment` of them at a time."""
    time = np.arange(frames) / segment
    heading = HEADINGS[motion]
    if heading is None:
        heading, speed, turn = rng.uniform(0, 2 * np.pi), rng.uniform(0, DRIFT), rng.uniform(*ROLL)
    else:
        speed, turn = rng.uniform(*STEP), rng.uniform(-TWIST, TWIST)
        heading += rng.uniform(-ASIDE, ASIDE)
    angle = rng.uniform(0, 2 * np.pi) + turn * time
    towards = angle + heading + rng.normal(0, WANDER, frames)  # the view's own left is not the scene's
    x, y = np.cumsum(speed / segment * np.stack([np.cos(towards), np.sin(towards)]), 1)
    return View(x, y, angle, int(rng.integers(2**62)))


def render_film(film, height=56, width=56):
    """Pixels of a Film: uint8 of shape (frames, height, width, 3), RGB.

    Raises ValueError below 32 pixels.
    """
    if min(height, width) < 32:
        raise ValueError(f"height and width must be 32 or more. Received height={height!r}, width={width!r}")
    frames = len(film.shown)
    video = np.empty((frames, height, width, 3), np.float32)
    for number, view in enumerate(film.views):
        video[film.shown == number] = _draw(view, height, width)
    rng = np.random.default_rng(film.seed)
    light = rng.uniform(1 - LIGHT, 1 + LIGHT, (frames, 1, 1, 3)).astype(np.float32)
    noise = rng.standard_normal((frames, height, width, 1), np.float32) * np.float32(rng.uniform(*NOISE))
    video = (np.clip(video * light + noise, 0, 1) * 255 + 0.5).astype(np.uint8)
    return video[::-1] if film.reverse else video


def _draw(view, height, width):
    """Frames of one View, float32 (n, height, width, 3)."""
    down, across = (np.mgrid[:height, :width] + 0.5) / height
    down, across = down - 0.5, across - width / height / 2
    cos, sin = np.cos(view.angle)[:, None, None], np.sin(view.angle)[:, None, None]
    x = view.x[:, None, None] + cos * across - sin * down  # (n, height, width)
    y = view.y[:, None, None] + sin * across + cos * down
    x, y = x - x.min(), y - y.min()
    table = _table(np.random.default_rng(view.seed), y.max(), x.max(), height)
    return _sample(table, y * height, x * height)


def _table(rng, tall, wide, scale):
    """A table full of things: float32 (rows, columns, 3), `scale` pixels a frame height."""
    ground = np.array(rng.uniform(0.2, 0.8, 3), np.float32)
    picture = np.tile(ground, (1, int(tall * scale) + 2, int(wide * scale) + 2, 1))
    low, high = np.full(2, -SIZE[1] / 2), np.array([wide, tall]) + SIZE[1] / 2
    still, unit = np.zeros((1, 2)), scale / picture.shape[1]  # `paint` takes the picture's height for 1
    for place in rng.uniform(low, high, (int(DENSITY * np.prod(high - low)), 2)):
        paint(picture, _thing(rng, *(unit * place), unit * rng.uniform(*SIZE)), still)
    return picture[0]


def _thing(rng, x, y, size):
    name = str(rng.choice(list(COLOURS)))
    rgb = tuple(np.clip(np.array(COLOURS[name]) + rng.uniform(-0.1, 0.1, 3), 0, 1))
    shape, texture = str(rng.choice(SHAPES)), str(rng.choice(TEXTURES))
    track = (np.array([value]) for value in (x, y, size, rng.uniform(0, 2 * np.pi)))
    return Thing(shape, texture, name, rgb, *track)


def _sample(picture, y, x):
    """Values between the pixels of a picture (rows, columns, 3), by the four around them."""
    top, left = y.astype(int), x.astype(int)
    down, right = (y - top).astype(np.float32)[..., None], (x - left).astype(np.float32)[..., None]
    upper = picture[top, left] * (1 - right) + picture[top, left + 1] * right
    lower = picture[top + 1, left] * (1 - right) + picture[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down
