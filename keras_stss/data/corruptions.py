"""Clips as a bad camera, bad weather or a bad line would give them: what a model's robustness is measured on.

Each corruption is a function of a clip, uint8 (T, H, W, 3), a level and a ``numpy.random.Generator`` that gives a new
clip of the same shape. What is drawn does not depend on the level, so that a higher severity is the same damage, more
of it. Lengths in pixels are those of frames of 224 x 224, and are scaled with the short side of others.

The two of SELFY (section 4.5, appendix A) change the centre frame alone. Those of ImageNet-C (Hendrycks and Dietterich,
"Benchmarking neural network robustness to common corruptions and perturbations", ICLR 2019; the levels are the numbers
of its code) change all frames: noise is drawn anew for each, while the direction of a blur and the shape of the fog
stay through the clip, as they would in a video. Its fog is another fractal here. Those of video itself change which
frame is seen when, or code the clip anew; they act on the T frames that are sampled, not on the frames of the file.
"""

import dataclasses
import io
import math
import zlib
from collections.abc import Callable
from types import MappingProxyType

import av
import numpy as np
import tensorflow as tf

from keras_stss.data.annotations import DataError

_SIDE = 224  # pixels of the frames that lengths are given for


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One way to damage a clip.

    Args:
        group: ``"selfy"``, ``"imagenet-c"`` or ``"video"``.
        meaning: a line for the user.
        levels: arguments of the function, for severity 1, 2 and so on.
        function: of (frames, level, generator).
    """

    group: str
    meaning: str
    levels: tuple
    function: Callable


def corrupt(frames, name, severity, rng):
    """A damaged clip.

    Args:
        frames: uint8 (T, H, W, 3).
        name: a key of ``CORRUPTIONS``.
        severity: from 1 to the number of its levels; 0 gives the frames as they are.
        rng: ``numpy.random.Generator``.

    Returns:
        uint8 array of the same shape.
    """
    corruption = CORRUPTIONS[name]
    if not 0 <= severity <= len(corruption.levels):
        raise ValueError(f"{name} has severities from 0 to {len(corruption.levels)}. Received: severity={severity}")
    return corruption.function(frames, corruption.levels[severity - 1], rng) if severity else frames


class Corrupted:
    """All views of a clip damaged, as a function of the clip's name and a seed alone.

    Args:
        name, severity: see :func:`corrupt`.
        clips: names of the clips by index.
        seed: not negative.
    """

    def __init__(self, name, severity, clips, seed=0):
        self.name, self.severity, self.clips, self.seed = name, severity, clips, seed

    def __call__(self, views, index):
        """Damages uint8 (V, T, H, W, 3) of the clip with this index."""
        key = zlib.crc32(self.clips[index].encode())
        generators = (np.random.default_rng((self.seed, key, view)) for view in range(len(views)))
        return np.stack([corrupt(frames, self.name, self.severity, rng) for frames, rng in zip(views, generators)])


def find_corruptions(names):
    """Names of corruptions from names and groups ("all" for all), each once, in the order of ``CORRUPTIONS``.

    Raises:
        DataError: for what is neither, with all that there are.
    """
    groups = {"all"} | {corruption.group for corruption in CORRUPTIONS.values()}
    if unknown := [name for name in names if name not in CORRUPTIONS and name not in groups]:
        known = "\n".join(f"  {name:<20} {each.group:<11} {each.meaning}" for name, each in CORRUPTIONS.items())
        raise DataError(f"no corruption, nor a group of them, is called {', '.join(unknown)}. There are:\n{known}")
    return [name for name, each in CORRUPTIONS.items() if {name, each.group, "all"} & set(names)]


# --- the centre frame -------------------------------------------------------------------------------------------------


def center_frame(count):
    """Index of the frame that SELFY damages: the fourth of eight."""
    return (count - 1) // 2


def _center_occlusion(frames, side, rng):
    """A black square in the middle."""
    side = max(round(_length(side, frames)), 1)
    top, left = ((size - side) // 2 for size in frames.shape[1:3])
    changed = frames.copy()
    changed[center_frame(len(frames)), top : top + side, left : left + side] = 0
    return changed


def _center_motion_blur(frames, level, rng):
    place, changed = center_frame(len(frames)), frames.copy()
    changed[place] = _motion_blur(frames[place : place + 1], level, rng)[0]
    return changed


# --- all frames, after ImageNet-C -------------------------------------------------------------------------------------


def _gaussian_noise(frames, deviation, rng):
    return _bytes(frames + 255 * deviation * rng.standard_normal(frames.shape, np.float32))


def _shot_noise(frames, photons, rng):
    """The fewer photons make a white pixel, the more they scatter."""
    return _bytes(rng.poisson(frames * (photons / 255)) * (255 / photons))


def _impulse_noise(frames, share, rng):
    """A share of the values becomes 0 or 255."""
    draws = rng.random(frames.shape, np.float32)
    return np.where(draws < share / 2, np.uint8(0), np.where(draws > 1 - share / 2, np.uint8(255), frames))


def _defocus_blur(frames, level, rng):
    """A disk of that radius, whose edge is softened by a Gaussian."""
    scale = _length(1, frames)
    radius, softness = level[0] * max(scale, 1), level[1]
    around = 1 if level[0] <= 8 else 2
    line = np.arange(-math.floor(radius) - around, math.floor(radius) + around + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float64)
    weights = np.exp(-0.5 * (np.arange(-around, around + 1) / softness) ** 2)
    for axis in (0, 1):
        disk = np.apply_along_axis(np.convolve, axis, disk, weights / weights.sum(), "same")
    places = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    kernel = _kernel(places, disk.ravel(), min(scale, 1))
    planes = np.moveaxis(_padded(frames, len(kernel) // 2), 3, 1)  # (T, 3, H, W)
    planes = planes.reshape(-1, *planes.shape[2:], 1).astype(np.float32)
    with tf.device("CPU:0"):
        found = tf.nn.conv2d(planes, kernel[:, :, None, None].astype(np.float32), 1, "VALID").numpy()
    return _bytes(np.moveaxis(found.reshape(-1, 3, *frames.shape[1:3]), 1, 3))


def _motion_blur(frames, level, rng):
    """The mean along half a Gaussian, in one direction: what ImageMagick's motion blur does with (radius, sigma)."""
    scale = _length(1, frames)
    radius, sigma = (each * max(scale, 1) for each in level)
    angle = math.radians(rng.uniform(-45, 45))
    steps = np.arange(2 * math.ceil(radius) + 1)
    places = np.ceil(steps[:, None] * [math.sin(angle), math.cos(angle)] - 0.5)  # down, right
    kernel = _kernel(places, np.exp(-0.5 * (steps / sigma) ** 2), min(scale, 1))
    reach, (height, width) = len(kernel) // 2, frames.shape[1:3]
    padded = np.pad(frames.astype(np.float32), [(0, 0), (reach, reach), (reach, reach), (0, 0)], "edge")
    total = np.zeros(frames.shape, np.float32)
    for y, x in np.argwhere(kernel):
        total += np.float32(kernel[y, x]) * padded[:, y : y + height, x : x + width]
    return _bytes(total)


def _kernel(places, weights, scale):
    """A square matrix of odd size with weights at places (N, 2), down and right from its centre; its sum is 1.

    A ``scale`` below 1 draws the places together; between pixels, a weight goes to those around it by their nearness.
    """
    places = places * scale
    reach = math.ceil(np.abs(places).max())
    nearness = np.maximum(0, 1 - np.abs(places[:, :, None] - np.arange(-reach, reach + 1)))  # (N, 2, size)
    return np.einsum("n,ny,nx->yx", weights / weights.sum(), nearness[:, 0], nearness[:, 1])


def _zoom_blur(frames, level, rng):
    """The mean of the frame and of zooms into its centre, from 1 to the largest in even steps."""
    count, step = level
    total = frames.astype(np.float32)
    for number in range(count):
        total += _zoomed(frames, 1 + number * step)
    return _bytes(total / (count + 1))


def _zoomed(frames, factor):
    """Frames seen ``factor`` times as large, linear between pixels."""
    for axis in (1, 2):
        size = frames.shape[axis]
        places = (np.arange(size) - (size - 1) / 2) / factor + (size - 1) / 2
        first = np.clip(np.floor(places).astype(int), 0, max(size - 2, 0))
        share = (places - first).astype(np.float32).reshape([-1 if each == axis else 1 for each in range(4)])
        one, other = (np.take(frames, np.minimum(each, size - 1), axis) for each in (first, first + 1))
        frames = one * (1 - share) + other * share
    return frames


def _brightness(frames, amount, rng):
    """More of value in HSV, whose hue and saturation stay."""
    value = frames.max(-1, keepdims=True).astype(np.float32)
    wanted = np.minimum(value + 255 * amount, 255)
    return _bytes(np.where(value > 0, frames * (wanted / np.maximum(value, 1)), wanted))


def _contrast(frames, share, rng):
    """Nearer to each frame's mean colour."""
    means = frames.mean((1, 2), keepdims=True)
    return _bytes((frames - means) * share + means)


def _fog(frames, level, rng):
    """Clouds are added, and all is scaled so that the brightest pixel could stay."""
    amount, smoothness = level
    clouds = _clouds(*frames.shape[1:3], smoothness, rng)[:, :, None]
    largest = frames.max((1, 2, 3), keepdims=True) / 255
    return _bytes((frames + 255 * amount * clouds) * (largest / (largest + amount)))


def _clouds(height, width, smoothness, rng):
    """A fractal from 0 to 1, (height, width): each octave has twice the detail and 1 / smoothness of the height."""
    total = np.zeros((height, width))
    for octave in range(9):
        grid = rng.uniform(-1, 1, (2**octave + 1, 2**octave + 1))
        rows, columns = (_between(size, len(grid)) for size in (height, width))
        total += rows @ grid @ columns.T / smoothness**octave
    total -= total.min()
    return total / max(total.max(), np.finfo(float).tiny)


def _between(size, points):
    """Matrix (size, points) that puts ``size`` places linearly between even points, the first and last on the ends."""
    places = np.linspace(0, points - 1, size)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(points)))


def _pixelate(frames, share, rng):
    """Means over fewer pixels, each shown as a block."""
    for axis in (1, 2):
        size = frames.shape[axis]
        fewer = max(int(size * share), 1)
        edges = np.arange(fewer + 1)[:, None] * size / fewer
        part = np.clip(edges[1:] - np.arange(size), 0, 1) - np.clip(edges[:-1] - np.arange(size), 0, 1)
        means = np.moveaxis(np.tensordot(part * fewer / size, frames, (1, axis)), 0, axis)
        frames = np.take(means, ((np.arange(size) + 0.5) * fewer / size).astype(int), axis)
    return _bytes(frames)


def _jpeg(frames, quality, rng):
    with tf.device("CPU:0"):
        coded = (tf.io.encode_jpeg(frame, quality=quality) for frame in frames)
        return np.stack([tf.io.decode_jpeg(each, channels=3).numpy() for each in coded])


# --- when a frame is seen, and how it was coded -----------------------------------------------------------------------


def _dropped_frames(frames, share, rng):
    """That share of the frames is black."""
    changed = frames.copy()
    changed[rng.permutation(len(frames))[: _count(share, frames)]] = 0
    return changed


def _frozen_frames(frames, share, rng):
    """That share of the frames, in a run, shows the frame before them."""
    count = min(_count(share, frames), len(frames) - 1)
    first = int(rng.random() * (len(frames) - count))
    places = np.arange(len(frames))
    return frames[np.where((places > first) & (places <= first + count), first, places)]


def _shuffled_frames(frames, share, rng):
    """That share of the frames stands in places of one another; each of them moves."""
    order, places = rng.permutation(len(frames)), np.arange(len(frames))
    chosen = np.sort(order[: max(_count(share, frames), 2)])
    if len(chosen) > 1:
        turn = rng.permutation(len(chosen))  # around which the frames move on, so that none stays
        places[chosen[turn]] = chosen[np.roll(turn, 1)]
    return frames[places]


def _reversed_frames(frames, level, rng):
    return frames[::-1].copy()


def _frame_rate(frames, step, rng):
    """One frame of so many is shown until the next one comes."""
    return frames[np.arange(len(frames)) // step * step]


def _compression(frames, quantizer, rng):
    """Coded as H.264 with that constant rate factor, as for a live stream, and decoded."""
    height, width = frames.shape[1:3]
    even = np.pad(frames, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], "edge")
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        # With B-frames and a look ahead, x264 gives other bytes every now and then, even in one thread.
        options = {"crf": str(quantizer), "tune": "zerolatency"}
        stream = container.add_stream("libx264", rate=12, options=options)
        stream.width, stream.height, stream.pix_fmt = even.shape[2], even.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return decoded[:, :height, :width]


# --- in common --------------------------------------------------------------------------------------------------------


def _length(pixels, frames):
    """A length in frames of 224 x 224 as one in these."""
    return pixels * min(frames.shape[1:3]) / _SIDE


def _count(share, frames):
    return max(round(share * len(frames)), 1)


def _padded(frames, reach):
    # In steps: a reflection is never longer than the frame.
    while reach:
        part = min([reach, *(size - 1 for size in frames.shape[1:3])])
        if not part:
            return np.pad(frames, [(0, 0), (reach, reach), (reach, reach), (0, 0)], "edge")
        frames, reach = np.pad(frames, [(0, 0), (part, part), (part, part), (0, 0)], "reflect"), reach - part
    return frames


def _bytes(values):
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625)

#: {name: corruption}.
CORRUPTIONS = MappingProxyType({
    "center_occlusion": Corruption(
        "selfy", "a black square in the centre frame", (40, 80, 120, 160, 200, 224), _center_occlusion
    ),
    "center_motion_blur": Corruption(
        "selfy", "motion blur of the centre frame",
        ((15, 5), (10, 8), (15, 12), (20, 15), (25, 20), (30, 25)), _center_motion_blur,
    ),
    "gaussian_noise": Corruption(
        "imagenet-c", "sensor noise in the dark", (0.08, 0.12, 0.18, 0.26, 0.38), _gaussian_noise
    ),
    "shot_noise": Corruption("imagenet-c", "noise of few photons", (60, 25, 12, 5, 3), _shot_noise),
    "impulse_noise": Corruption(
        "imagenet-c", "salt and pepper", (0.03, 0.06, 0.09, 0.17, 0.27), _impulse_noise
    ),
    "defocus_blur": Corruption(
        "imagenet-c", "out of focus", ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)), _defocus_blur
    ),
    "motion_blur": Corruption(
        "imagenet-c", "a moving camera", ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), _motion_blur
    ),
    "zoom_blur": Corruption(
        "imagenet-c", "a camera that moves forward",
        ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)), _zoom_blur,
    ),
    "fog": Corruption(
        "imagenet-c", "clouds before the scene", ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)), _fog
    ),
    "brightness": Corruption("imagenet-c", "too bright", (0.1, 0.2, 0.3, 0.4, 0.5), _brightness),
    "contrast": Corruption("imagenet-c", "little contrast", (0.4, 0.3, 0.2, 0.1, 0.05), _contrast),
    "pixelate": Corruption("imagenet-c", "few pixels", (0.6, 0.5, 0.4, 0.3, 0.25), _pixelate),
    "jpeg": Corruption("imagenet-c", "each frame as a JPEG of low quality", (25, 18, 15, 10, 7), _jpeg),
    "dropped_frames": Corruption("video", "some frames are black", _SHARES, _dropped_frames),
    "frozen_frames": Corruption("video", "the picture stands still for a while", _SHARES, _frozen_frames),
    "shuffled_frames": Corruption("video", "some frames change places", (0.25, 0.4, 0.6, 0.8, 1.0), _shuffled_frames),
    "reversed_frames": Corruption("video", "the clip runs backwards", (1,), _reversed_frames),
    "frame_rate": Corruption("video", "only every 2nd (3rd, 4th, 6th, 8th) frame", (2, 3, 4, 6, 8), _frame_rate),
    "compression": Corruption("video", "coded anew as H.264, frame after frame", (27, 33, 39, 45, 51), _compression),
})  # fmt: skip
