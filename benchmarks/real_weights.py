"""Do converted weights see in real pictures what the original sees? MobileNet-V2 with torchvision's ImageNet weights.

    python benchmarks/real_weights.py --weights mobilenet_v2-b0353104.pth --pictures DIR [DIR …] [--labels FILE.csv]

Needs torch, torchvision and Pillow, which nothing else here does. The original is torchvision's own model; both get the
same pixels: the short side to 256, the middle 224×224. A picture's class is known from the CSV (name,class) or from a
number at the end of its name (dog_243.jpg); agreement counts all pictures, accuracy those of known class.
"""

import argparse
import csv
import json
import re
from pathlib import Path

import keras
import numpy as np
import torch
from PIL import Image
from torchvision.models import mobilenet_v2

from keras_stss.bench import machine
from keras_stss.config import parse_config
from keras_stss.layers.frames import IMAGENET_MEAN, IMAGENET_STD
from keras_stss.models import build_model, load_pretrained
from keras_stss.models.weights.convert import NO_DATA
from keras_stss.models.weights.pretrained import inspect

RESULT = Path(__file__).resolve().parent / "results" / "real_weights.json"
SUFFIXES = (".jpg", ".jpeg", ".png")
BATCH = 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="torchvision's state dict of MobileNet-V2")
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="folders of .jpg and .png files")
    parser.add_argument("--labels", type=Path, help="CSV file: name,class")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file of the figures")
    options = parser.parse_args()
    paths = [
        path for folder in options.pictures for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES
    ]
    if not paths:
        parser.error("no pictures there")
    figures = compare(options.weights, paths, known_classes(paths, options.labels))
    versions = {"torch": torch.__version__, "keras": keras.__version__, "backend": keras.backend.backend()}
    record = {"weights": options.weights.name, **figures, "versions": versions, "machine": machine.describe()}
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def compare(weights, paths, classes):
    """Figures of the converted model beside the original's.

    Args:
        weights: state dict file. paths: pictures. classes: class of each picture, -1 where it is not known.
    """
    origin = inspect(weights)
    config = parse_config({"data": NO_DATA, "model": origin.model()})
    model = build_model(config, classes=origin.classes)
    report = load_pretrained(model, weights, strict=True)
    original = mobilenet_v2()
    original.load_state_dict(torch.load(weights, weights_only=True))
    original.eval()
    logits = []
    for start in range(0, len(paths), BATCH):
        pixels = np.stack([read(path) for path in paths[start : start + BATCH]])
        ours = keras.ops.convert_to_numpy(model(pixels[:, None]))
        inputs = ((pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32).transpose(0, 3, 1, 2)
        with torch.no_grad():
            logits.append((ours, original(torch.from_numpy(inputs)).numpy()))
    ours, theirs = (np.concatenate(part) for part in zip(*logits))
    labelled = classes >= 0
    return {
        "tensors_matched": len(report.matched),
        "pictures": len(paths),
        "same_first_class": int((ours.argmax(1) == theirs.argmax(1)).sum()),
        "same_first_five_in_order": int((first_five(ours) == first_five(theirs)).all(1).sum()),
        "pictures_of_known_class": int(labelled.sum()),
        "right_here": int((ours.argmax(1) == classes)[labelled].sum()),
        "right_in_the_original": int((theirs.argmax(1) == classes)[labelled].sum()),
        "largest_logit_difference": float(np.abs(ours - theirs).max()),
        "largest_logit": float(np.abs(theirs).max()),
    }


def first_five(logits):
    return np.argsort(-logits, axis=1)[:, :5]


def read(path):
    """A picture's middle, (224, 224, 3) bytes."""
    picture = Image.open(path).convert("RGB")
    scale = 256 / min(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BILINEAR)
    left, top = ((side - 224) // 2 for side in picture.size)
    return np.asarray(picture.crop((left, top, left + 224, top + 224)))


def known_classes(paths, labels):
    """(pictures,) classes, -1 where unknown."""
    table = {}
    if labels:
        with labels.open(newline="", encoding="utf-8") as file:
            table = {row[0]: int(row[1]) for row in csv.reader(file) if row and row[1].strip().isdigit()}

    def find(path):
        ending = re.search(r"_(\d+)$", path.stem)
        return table.get(path.name, -1) if labels else int(ending[1]) if ending else -1

    return np.array([find(path) for path in paths])


if __name__ == "__main__":
    main()
