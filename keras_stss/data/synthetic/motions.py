"""The embedded data set: twelve classes that only motion can tell apart.

`prepare` renders short clips of one moving object among clutter, encodes them as VP9 webm and lays them out
exactly as Something-Something V2 is, so that the same loader reads both. A class is the motion alone: looks,
sizes and places come from the same distributions in every class, and the classes in `REVERSED` are their
partner played backwards, so that no unordered bag of frames tells the two apart.
Geometry is in frame heights: x runs from 0 to width / height, y from 0 (top) to 1 (bottom).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from keras_stss.data.synthetic.things import SHAPES, TEXTURES, Thing, colour_apart, paint

TEMPLATES = (
    "Moving [something] from left to right",
    "Moving [something] from right to left",
    "Moving [something] up",
    "Moving [something] down",
    "Moving [something] towards the camera",
    "Moving [something] away from the camera",
    "Moving [something] clockwise in a circle",
    "Moving [something] anticlockwise in a circle",
    "Holding [something] still while the camera shakes",
    "Passing [something] behind [something]",
    "Moving [something] and bringing it back",
    "Colliding [something] with [something] and stopping",
)
REVERSED = {0: 1, 1: 0, 2: 3, 3: 2, 4: 5, 5: 4, 6: 7, 7: 6}
RIGHT, UP, NEARER, CLOCKWISE, SHAKE, BEHIND, BACK, COLLIDE = 0, 2, 4, 6, 8, 9, 10, 11  # those drawn forwards

# Subject. Large enough to survive a resize to 96 pixels; the scale classes ramp inside the same range.
SIZE = (0.15, 0.29)  # diameter of an object
SCALE_SMALL = (0.125, 0.155)  # far end of the scale ramp
SCALE_RATIO = (1.9, 2.4)  # near end / far end: below 1.8 a ramp is hard to see at 96 pixels
TRAVEL = (0.42, 0.62)  # net displacement as a part of the frame's extent along the motion
COLLIDE_TRAVEL = (0.36, 0.48)  # shorter, because the object that is hit needs room in the frame
RADIUS, TURNS = (0.18, 0.27), (0.65, 1.2)  # of the circles: size, and how much of one is travelled
HOLD = (0.0, 0.2)  # rest at either end, as a part of the clip: when things happen says nothing
COLLIDE_END = (0.45, 0.7)  # moment of contact: the stop has to be seen
NUDGE, WOBBLE = (0.05, 0.1), 0.02  # how far the object that is hit gives way; sway across the path

# Camera. Every class jitters by about a pixel; the shaking class moves the world several times that.
JITTER, PAN = 0.006, 0.02  # fast and slow movement of the view
SHAKE_AMPLITUDE, SHAKE_CYCLES = (0.045, 0.07), (2.0, 5.0)  # cycles over a clip: 24 frames can show them
MARGIN = 0.12  # world drawn beyond the frame so that the camera may move

# Clutter, the same in every class: a second object always (or 'colliding' would be told by it) and a slab
# nearly always (or 'behind' would be).
DISTRACTORS, DRIFT = (0, 2), 0.03  # how many more objects, and how far they creep over a clip
SLAB_CHANCE, SLAB_LENGTH = 0.8, (0.6, 1.0)
SLAB_EXTRA = (0.06, 0.1)  # wider than an object by this: passing behind hides the object for a while
TOUCH_CHANCE = 0.4  # of a second object that the subject touches in passing: a touch alone is no collision
GAP = 0.05  # room left between the subject's two ends and other objects: only a collision ends in a touch

BACKGROUND_CONTRAST = (0.04, 0.12)  # lower than any object's
GAIN, NOISE = 0.08, (0.004, 0.014)  # of the light over a clip, and of the sensor


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """All that decides a clip's pixels.

    `things` are drawn in order, later ones in front, `subject` among them; `placeholders` are the phrases
    for each [something] of the template. `ground` is the background's rgb; `seed` draws background, camera,
    light and noise. Where `reverse` is true the clip is what is described here, played backwards.
    """

    template: int
    things: tuple
    subject: Thing
    placeholders: tuple
    ground: tuple
    seed: int
    reverse: bool


def plain_label(template):
    """A template without its brackets: the form in which the labels file holds it."""
    return template.replace("[", "").replace("]", "")


def template_index(template):
    """Class index of an index or a template text, with or without brackets; ValueError for anything else."""
    for index, text in enumerate(TEMPLATES):
        if template == index or (isinstance(template, str) and plain_label(template) == plain_label(text)):
            return index
    raise ValueError(f"template must be one of {TEMPLATES} or its index. Received template={template!r}")


def _subject_path(rng, base, frames, aspect, size):
    """Path of the subject for a forward class: dict with `xy` (frames, 2), `size` (frames,), `step`, the unit
    direction of travel, `room`, the points (n, 2) to be kept in view, and `hit` (frames,), how far the object
    that is hit moves along `step`.
    """
    free = rng.uniform(0, 2 * np.pi)
    direction = {RIGHT: 0.0, UP: -np.pi / 2}.get(base, free)
    move = np.array([aspect * np.cos(direction), np.sin(direction)])
    move *= rng.uniform(*(COLLIDE_TRAVEL if base == COLLIDE else TRAVEL))
    if base == BEHIND:  # both ends of the path must come out from behind the slab
        move *= max(1.0, (2 * size + SLAB_EXTRA[1]) / np.linalg.norm(move))
    time = np.linspace(0, 1, frames)
    start, end, ease = rng.uniform(*HOLD), rng.uniform(*HOLD), rng.uniform(0, 0.8)
    part = np.clip((time - start) / (1 - start - end), 0, 1)
    part = (1 - ease) * part + ease * part * part * (3 - 2 * part)
    step = move / np.linalg.norm(move)
    sizes = size * np.linspace(*rng.uniform(0.97, 1.03, 2), frames)
    room = np.array([[0, 0], move])
    hit = np.zeros(frames)
    if base == CLOCKWISE:
        angle = free + part * 2 * np.pi * rng.uniform(*TURNS)  # y points down: growing angles turn clockwise
        radius = rng.uniform(*RADIUS)
        xy = radius * np.stack([np.cos(angle), np.sin(angle)], 1)
        room = np.array([[-radius, -radius], [radius, radius]])
    elif base in (NEARER, SHAKE):  # rests somewhere on a path such as the other classes travel
        xy = np.outer(np.full(frames, rng.uniform()), move)
        if base == NEARER:
            sizes = rng.uniform(*SCALE_SMALL) * rng.uniform(*SCALE_RATIO) ** part
    elif base == BACK:
        xy = np.outer(np.sin(np.pi * part) ** rng.uniform(0.8, 1.2), move)
    elif base == COLLIDE:
        contact = rng.uniform(*COLLIDE_END)
        xy = np.outer(np.clip((time - start) / (contact - start), 0, 1), move)
        hit = rng.uniform(*NUDGE) * (1 - np.exp(-np.clip(time - contact, 0, None) / 0.06))
    else:
        xy = np.outer(part, move)
    if base != SHAKE:
        wave = np.sin(part * np.pi * rng.uniform(1, 3) + rng.uniform(0, 2 * np.pi))
        xy = xy + np.outer(rng.uniform(0, WOBBLE) * wave, [-step[1], step[0]])
    return {"xy": xy, "size": sizes, "room": room, "step": step, "hit": hit}


def _thing(rng, xy, size, others):
    """A thing of random look at `xy` (frames, 2), told from the colours in `others`."""
    name, rgb = colour_apart(rng, others, 0.45)
    angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(-0.25, 0.25), len(xy))
    shape, texture = str(rng.choice(SHAPES)), str(rng.choice(TEXTURES))
    return Thing(shape, texture, name, rgb, *xy.T, np.broadcast_to(size, (len(xy),)), angle)


def _bystander(rng, subject, taken, size, others, aspect, touch=None):
    """A static or slowly drifting thing away from both ends of the subject's path and from those `taken`.

    With `touch` it stands, if it can, where the subject touches it in mid clip; "any": even at an end.
    """
    track = np.stack([subject.x, subject.y], 1)
    places, angle = rng.uniform(0.05, [aspect - 0.05, 0.95], (40, 2)), rng.uniform(0, 2 * np.pi)
    if touch:
        beside = 0.46 * (subject.size.mean() + size) * np.array([np.cos(angle), np.sin(angle)])
        places[0] = np.clip(track[len(track) // 2] + beside, 0.05, [aspect - 0.05, 0.95])
    room = np.linalg.norm(track[[0, -1], None] - places, axis=2).min(0) - (subject.size.max() + size) / 2
    room = np.where((touch == "any") & (np.arange(40) == 0), 0, room - GAP)
    for thing in taken:
        apart = np.hypot(thing.x[0] - places[:, 0], thing.y[0] - places[:, 1])
        room = np.minimum(room, apart - 0.45 * (thing.size[0] + size))
    place = places[np.argmax(np.minimum(room, 0))]  # the first with room, else the one that lacks least
    drift = np.outer(np.linspace(-0.5, 0.5, len(track)), rng.uniform(-DRIFT, DRIFT, 2))
    return _thing(rng, place + drift, size, others)


def _slab(rng, base, step, subject, aspect, ground):
    """The slab, and whether it stands in front of the subject; (None, False) where the clip has none.

    Outside the class 'behind' a slab is in front only where it never covers the subject's centre.
    """
    width = (subject.size.mean() if base == BEHIND else rng.uniform(*SIZE)) + rng.uniform(*SLAB_EXTRA)
    place, angle = rng.uniform([0.1, 0.1], [aspect - 0.1, 0.9]), rng.uniform(0, 2 * np.pi)
    there, length = rng.uniform() < SLAB_CHANCE, rng.uniform(*SLAB_LENGTH)
    if base == BEHIND:
        place = np.array([subject.x[[0, -1]].mean(), subject.y[[0, -1]].mean()])
        angle = np.arctan2(step[1], step[0]) + rng.uniform(-0.12, 0.12)
    elif not there:
        return None, False
    x, y, cos, sin = subject.x - place[0], subject.y - place[1], np.cos(angle), np.sin(angle)
    hidden = (np.abs(cos * x + sin * y) < width / 2) & (np.abs(cos * y - sin * x) < length / 2)
    name, rgb = colour_apart(rng, [ground, subject.rgb], 0.4)
    rgb = tuple(0.55 * np.array(rgb) + 0.225)  # duller than objects, as a wall is
    track = (np.full(len(x), value) for value in (*place, width, angle))
    slab = Thing("slab", str(rng.choice(TEXTURES[:2])), name, rgb, *track, length)
    return slab, base == BEHIND or not hidden.any()


def _camera(rng, template, frames):
    """Position of the view, (frames, 2), in frame heights."""
    time = np.linspace(0, 1, frames)
    jitter = np.cumsum(rng.normal(0, 1, (frames, 2)), 0)
    jitter -= jitter.mean(0)
    path = jitter / np.abs(jitter).max() * rng.uniform(0.6, 2) * JITTER
    path += np.outer(time - 0.5, rng.uniform(-PAN, PAN, 2))
    cycles, phases = rng.uniform(*SHAKE_CYCLES, 2), rng.uniform(0, 2 * np.pi, 2)
    shake = np.sin(2 * np.pi * time[:, None] * cycles + phases) + rng.normal(0, 0.25, (frames, 2))
    if template == SHAKE:
        path += rng.uniform(*SHAKE_AMPLITUDE) * shake
    return np.clip(path, -MARGIN, MARGIN)


def plan_clip(template, rng, frames=24, aspect=144 / 112):
    """Draw the Scene of one clip, at `aspect` (width / height).

    The second class of a pair is planned as the first and marked `reverse`. ValueError as for `prepare`.
    """
    index = template_index(template)
    if frames < 8:
        raise ValueError(f"frames must be 8 or more. Received frames={frames!r}")
    base = min(index, REVERSED.get(index, index))
    ground = tuple(np.clip(rng.uniform(0.25, 0.75) + rng.uniform(-0.1, 0.1, 3), 0.1, 0.9))
    size, partner_size = rng.uniform(*SIZE), rng.uniform(*SIZE)
    path = _subject_path(rng, base, frames, aspect, size)
    room, step = path["room"], path["step"]
    if base == COLLIDE:  # the object that is hit stands at the end of the path and must be in view
        target = room[1] + step * 0.46 * (size + partner_size)
        room = np.concatenate([room, [target + step * NUDGE[1]]])
    low, high = room.min(0) - size / 2, room.max(0) + size / 2
    spare = np.array([aspect, 1.0]) - (high - low)
    offset = np.where(spare > 0, rng.uniform(0, 1, 2) * spare, spare / 2) - low  # no room: centred
    subject = _thing(rng, path["xy"] + offset, path["size"], [ground])
    told = [ground, subject.rgb]
    if base == COLLIDE:
        partner = _thing(rng, target + offset + np.outer(path["hit"], step), partner_size, told)
    else:
        touch = None
        if rng.uniform() < TOUCH_CHANCE:  # a straight path that ended in a touch would look like a collision
            touch = "passing" if base in (RIGHT, UP, BEHIND) else "any"
        partner = _bystander(rng, subject, (), partner_size, told, aspect, touch)
    slab, front = _slab(rng, base, step, subject, aspect, ground)
    others = [partner]
    for _ in range(rng.integers(DISTRACTORS[0], DISTRACTORS[1] + 1)):
        others.append(_bystander(rng, subject, others, 0.8 * rng.uniform(*SIZE), told, aspect))
    things = [*others[::-1], subject]
    if slab is not None:
        things.insert(len(things) if front else 0, slab)
    phrases = tuple(thing.phrase for thing in (subject, *{BEHIND: [slab], COLLIDE: [partner]}.get(base, [])))
    return Scene(index, tuple(things), subject, phrases, ground, int(rng.integers(2**62)), base != index)


def _backdrop(rng, ground, height, width):
    """The world behind everything, (H, W, 3) float32, larger than the frame by the camera's margin."""
    y, x = np.mgrid[:height, :width].astype(np.float32) / height
    angle, pitch, soft = rng.uniform(0, np.pi), rng.uniform(12, 60), rng.uniform(1, 4)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x

    def clouds(scale):  # smooth noise: a few random waves
        waves = rng.normal(0, [scale, scale, 9], (16, 3)).astype(np.float32)
        return sum(np.cos(a * x + b * y + c) for a, b, c in waves) / 4

    kind = rng.choice(["noise", "gradient", "stripes", "checkers"])
    if kind == "stripes":
        value = np.clip(np.sin(u * pitch) * soft, -1, 1)
    elif kind == "checkers":
        value = np.clip(np.sin(u * pitch) * np.sin(v * pitch) * 2 * soft, -1, 1)
    else:
        value = (u - u.min()) / np.ptp(u) * 2 - 1 if kind == "gradient" else clouds(rng.uniform(6, 30))
    tint = rng.uniform(0.6, 1.0, 3) * rng.uniform(*BACKGROUND_CONTRAST)
    return (np.array(ground) + value[..., None] * tint + 0.03 * clouds(60)[..., None]).astype(np.float32)


def render_scene(scene, height=112, width=144):
    """Pixels of a Scene: uint8 of shape (frames, height, width, 3), RGB.

    `width / height` should be the aspect it was planned for. Raises ValueError below 32 pixels.
    """
    if min(height, width) < 32:
        raise ValueError(f"height and width must be 32 or more. Received height={height!r}, width={width!r}")
    rng = np.random.default_rng(scene.seed)
    frames = len(scene.subject.x)
    camera = _camera(rng, scene.template, frames)
    margin = int(np.ceil(MARGIN * height)) + 1
    world = _backdrop(rng, scene.ground, height + 2 * margin, width + 2 * margin)
    video = np.empty((frames, height, width, 3), np.float32)
    for frame, (dx, dy) in zip(video, camera * height + margin, strict=True):
        left, top = int(dx), int(dy)
        view = world[top : top + height + 1, left : left + width + 1]
        rows = view[:, :-1] + np.float32(dx - left) * (view[:, 1:] - view[:, :-1])
        frame[:] = rows[:-1] + np.float32(dy - top) * (rows[1:] - rows[:-1])
    for thing in scene.things:
        paint(video, thing, camera)
    wave = np.outer(np.linspace(0, 1, frames), rng.uniform(0.3, 1.5, 2)) + rng.uniform(0, 1, 2)
    light = np.sin(2 * np.pi * wave) * rng.uniform(0, (GAIN, GAIN / 2)) + [1, 0]
    gain, shift = light.T.astype(np.float32)[:, :, None, None, None]
    noise = rng.standard_normal((frames, height, width, 1), np.float32) * np.float32(rng.uniform(*NOISE))
    video = (np.clip(video * gain + shift + noise, 0, 1) * 255 + 0.5).astype(np.uint8)
    return video[::-1] if scene.reverse else video


def render_clip(template, rng, frames=24, height=112, width=144):
    """One clip of a class as pixels: uint8 (frames, height, width, 3), RGB.

    `template` is a class index or text, `rng` a numpy Generator. With equal generators a class in `REVERSED`
    is its partner played backwards. Raises ValueError as `plan_clip` and `render_scene` do.
    """
    return render_scene(plan_clip(template, rng, frames, width / height), height, width)
