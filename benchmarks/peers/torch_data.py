"""Other people's ways from files to batches: PIL, OpenCV and torchcodec, with a PyTorch DataLoader.

The transforms do what those of the TSN/TSM line of code do (multi-scale corner crop, mirror, stack, tensor, normalise),
written for this page. ``uint8`` contestants leave out what comes after the crop, as our stream does: the model's first
layer takes whole numbers.
"""

import os
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler

SHOWN = 4
SCALES = (1.0, 0.875, 0.75, 0.66)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# --- which frames -----------------------------------------------------------------------------------------------------


def _middles(count, frames):
    return [int(count / frames / 2 + count / frames * number) for number in range(frames)]


def _drawn(count, frames):
    average = count // frames
    return [number * average + random.randrange(average) for number in range(frames)]


# --- readers: (path, choose) → frames; choose gives the indices for a number of frames --------------------------------


def _files(path, choose):
    names = sorted(os.listdir(path))
    return [os.path.join(path, names[index]) for index in choose(len(names))]


def _pil(path, choose):
    from PIL import Image

    return [Image.open(name).convert("RGB") for name in _files(path, choose)]


def _opencv(path, choose):
    import cv2

    if os.path.isdir(path):
        return [cv2.cvtColor(cv2.imread(name), cv2.COLOR_BGR2RGB) for name in _files(path, choose)]
    # Clips are decoded side by side, each by one thread.
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    frames, seen = [], 0
    for index in choose(int(capture.get(cv2.CAP_PROP_FRAME_COUNT))):
        while seen <= index:
            capture.grab()
            seen += 1
        frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return frames


def _opencv_to_pil(path, choose):
    from PIL import Image

    return [Image.fromarray(frame) for frame in _opencv(path, choose)]


def _opencv_to_torch(path, choose):
    return torch.from_numpy(np.stack(_opencv(path, choose)))


def _torchcodec(seek_mode):
    def read(path, choose):
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=seek_mode)
        return decoder.get_frames_at(choose(len(decoder))).data

    return read


# --- transforms: frames → tensor --------------------------------------------------------------------------------------


def _box(width, height, crop):
    """A multi-scale corner crop: left, top, width, height."""
    sides = [int(min(width, height) * scale) for scale in SCALES]
    sides = [crop if abs(side - crop) < 3 else side for side in sides]
    pairs = [(w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    box_width, box_height = random.choice(pairs)
    across, down = (width - box_width) // 4, (height - box_height) // 4
    places = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3)]
    right, below = random.choice(places)
    return right * across, below * down, box_width, box_height


def _stacked(images, case):
    """Cropped and mirrored pictures as one array (H, W, 3T)."""
    from PIL import Image

    height, width = case["resize"]
    images = [image if image.size == (width, height) else image.resize((width, height)) for image in images]
    left, top, box_width, box_height = _box(width, height, case["crop"])
    images = [image.crop((left, top, left + box_width, top + box_height)) for image in images]
    images = [image.resize((case["crop"],) * 2, Image.Resampling.BILINEAR) for image in images]
    if random.random() < 0.5:
        images = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    return np.concatenate([np.asarray(image) for image in images], axis=2)


def _tsn(images, case):
    tensor = torch.from_numpy(_stacked(images, case)).permute(2, 0, 1).contiguous().float().div(255)
    for number, channel in enumerate(tensor):
        channel.sub_(MEAN[number % 3]).div_(DEVIATION[number % 3])
    return tensor


def _pil_bytes(images, case):
    return torch.from_numpy(_stacked(images, case))


def _opencv_bytes(frames, case):
    import cv2

    height, width = case["resize"]
    if frames[0].shape[:2] != (height, width):
        frames = [cv2.resize(frame, (width, height)) for frame in frames]
    left, top, box_width, box_height = _box(width, height, case["crop"])
    views = [
        cv2.resize(frame[top : top + box_height, left : left + box_width], (case["crop"],) * 2) for frame in frames
    ]
    if random.random() < 0.5:
        views = [cv2.flip(view, 1) for view in views]
    return torch.from_numpy(np.stack(views))


def _torch_bytes(frames, case):
    frames, size = frames.permute(0, 3, 1, 2), tuple(case["resize"])
    if tuple(frames.shape[2:]) != size:
        frames = functional.interpolate(frames, size, mode="bilinear", antialias=True)
    left, top, box_width, box_height = _box(size[1], size[0], case["crop"])
    part = frames[:, :, top : top + box_height, left : left + box_width]
    view = functional.interpolate(part, (case["crop"],) * 2, mode="bilinear", antialias=True)
    return view.flip(3) if random.random() < 0.5 else view


def _shown(batch, case):
    """Any contestant's batch as ours are: uint8 (B, T, H, W, 3)."""
    size, batch = (-1, case["frames"], 3, case["crop"], case["crop"]), batch.contiguous()
    if batch.dtype != torch.uint8:
        deviation, mean = (torch.tensor(values)[:, None, None] for values in (DEVIATION, MEAN))
        batch = ((batch.reshape(size) * deviation + mean) * 255).round().clamp(0, 255).byte()
    elif batch.shape[-1] == 3 * case["frames"]:  # PIL's stack
        batch = batch.permute(0, 3, 1, 2).reshape(size)
    elif batch.shape[-1] == 3:
        return batch.numpy()
    return batch.reshape(size).permute(0, 1, 3, 4, 2).numpy()


# --- stages -----------------------------------------------------------------------------------------------------------


class _Clips(Dataset):
    def __init__(self, case, read, transform):
        self.case, self.read, self.transform = case, read, transform

    def __getitem__(self, number):
        frames = self.read(self.case["paths"][number], lambda count: _drawn(count, self.case["frames"]))
        return self.transform(frames, self.case), 0


class _Endless(Sampler):
    """Batches of clips in random order, without end."""

    def __init__(self, case):
        self.case = case

    def __iter__(self):
        numbers = []
        while True:
            while len(numbers) < self.case["batch"]:
                numbers += random.sample(range(len(self.case["paths"])), len(self.case["paths"]))
            yield numbers[: self.case["batch"]]
            numbers = numbers[self.case["batch"] :]


def _start_worker(_):
    try:
        import cv2
    except ImportError:
        return
    cv2.setNumThreads(0)


def _contestant(read, transform=None):
    def make(case, arrays, mode):
        read(case["paths"][0], lambda count: _middles(count, case["frames"]))  # what is missing is told here
        return _STAGES[mode](case, read, transform)

    return make


def _decode(case, read, transform):
    pool = ThreadPoolExecutor(case["threads"])

    def decode(path):
        return read(path, lambda count: _middles(count, case["frames"]))

    def call():
        return [frames for number, frames in enumerate(pool.map(decode, case["paths"])) if number < SHOWN]

    return call, lambda shown: {"frames": np.stack([np.stack([np.asarray(frame) for frame in clip]) for clip in shown])}


def _augment(case, read, transform):
    """By threads: what takes time in there lets others run."""
    pool = ThreadPoolExecutor(case["threads"])
    clips = [read(path, lambda count: _middles(count, case["frames"])) for path in case["paths"][:SHOWN]]
    rounds = case["batches"] * case["batch"] // len(clips)

    def call():
        return list(pool.map(lambda frames: transform(frames, case), clips * rounds))[-1]

    return call, lambda view: {"frames": _shown(view[None], case)}


def _batch(case, read, transform):
    clips = _Clips(case, read, transform)
    loader = iter(
        DataLoader(clips, batch_sampler=_Endless(case), num_workers=case["threads"], worker_init_fn=_start_worker)
    )

    def call():
        for _ in range(case["batches"]):
            batch, _ = next(loader)
        return batch

    return call, lambda batch: {"frames": _shown(batch, case)}


_STAGES = {"decode": _decode, "augment": _augment, "batch": _batch}
CONTESTANTS = {
    ("data", "PIL"): _contestant(_pil, _tsn),
    ("data", "PIL, uint8"): _contestant(_pil, _pil_bytes),
    ("data", "OpenCV and PIL"): _contestant(_opencv_to_pil, _tsn),
    ("data", "OpenCV"): _contestant(_opencv, _opencv_bytes),
    ("data", "PyTorch"): _contestant(_opencv_to_torch, _torch_bytes),
    ("data", "torchcodec, exact"): _contestant(_torchcodec("exact"), _torch_bytes),
    ("data", "torchcodec, approximate"): _contestant(_torchcodec("approximate"), _torch_bytes),
}
