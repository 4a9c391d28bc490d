"""A tiny data set of real video files, and a tiny recipe for it."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from pathlib import Path

import av
import numpy as np
import pytest
import yaml

CLASSES = ("blue square", "green square", "red square")
TRAIN, VALIDATION = 18, 7  # neither is a multiple of the batch sizes


def write_video(path, frames):
    """Writes uint8 frames (T, H, W, 3) as a small mp4 file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def square_clip(label, seed, frames=8, height=32, width=40):
    """A coloured square that moves over noise: uint8 (T, H, W, 3)."""
    rng = np.random.default_rng((label, seed))
    clip = rng.integers(60, 120, (frames, height, width, 3), dtype=np.uint8)
    top, left, step = *rng.integers(0, 12, 2), rng.integers(1, 3)
    for number, image in enumerate(clip):
        x = left + number * step
        image[top : top + 18, x : x + 20] = 20
        image[top : top + 18, x : x + 20, 2 - label] = 240
    return clip


def write_clip_set(root, train=TRAIN, validation=VALIDATION):
    """Videos and clips.csv (path, label, split, group) of three classes that colour tells apart, in two groups."""
    root.mkdir(parents=True, exist_ok=True)
    lines = ["path,label,split,group"]
    for number in range(train + validation):
        label = number % len(CLASSES)
        write_video(root / f"{number}.mp4", square_clip(label, number))
        split = "train" if number < train else "validation"
        lines.append(f"{number}.mp4,{CLASSES[label]},{split},{'AB'[number // 3 % 2]}")
    (root / "clips.csv").write_text("\n".join(lines) + "\n")
    return root


def tiny_values(root, run):
    """A config of the set as nested dictionaries: four frames of 32x32 pixels, the smallest backbone."""
    return {
        "data": {
            "format": "clips",
            "root": str(root),
            "annotations": "clips.csv",
            "frames": 4,
            "resize": [32, 40],
            "crop": 32,
            "workers": 2,
        },
        "model": {"backbone": "resnet10", "width": 8, "dropout": 0.0},
        "train": {
            "run": str(run),
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 0.05,
            "strategy": "one",
            "seed": 3,
            "board": {"clips": 0, "mistakes": 0, "motion": 0},  # they take longer than a tiny run
        },
        "evaluate": {"batch_size": 3},
    }


@pytest.fixture(scope="session")
def clip_set(tmp_path_factory):
    """The shared set: do not write into it."""
    return write_clip_set(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def recipe(clip_set, tmp_path):
    """Function (root, **{"section.key": value}) → path of a YAML file; its run directory is ``tmp_path / "run"``."""

    def write(root=clip_set, name="tiny.yaml", **changes):
        values = tiny_values(root, tmp_path / "run")
        for key, value in changes.items():
            *parents, last = key.split(".")
            place = values
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        path = Path(tmp_path / name)
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture(scope="session")
def trained_run(clip_set, tmp_path_factory):
    """A finished run of four epochs on the shared set: do not write into it; copy it to change it."""
    from keras_stss.cli import main

    folder = tmp_path_factory.mktemp("trained")
    values = tiny_values(clip_set, folder / "run")
    values["train"] |= {"epochs": 4, "keep_checkpoints": 2, "checkpoint_steps": 3, "learning_rate": 0.02}
    values["train"]["board"] = {"clips": 2, "mistakes": 2, "motion": 1, "every": 2}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", "--config", str(folder / "tiny.yaml")]) == 0
    return folder / "run"
