"""Run directories as far as the commands that test a model need them, without any training."""

import json

import keras
from conftest import CLASSES, tiny_values

from keras_stss.config import dump_config, parse_config
from keras_stss.models import build_model

LABELS = sorted(CLASSES)


def write_runs(clip_set, parent):
    """Two runs of other seeds and numbers of frames, with best.keras; returns their folders."""
    made = []
    for seed, frames in ((1, 4), (2, 2)):
        folder = parent / f"of{frames}"
        folder.mkdir()
        values = tiny_values(clip_set, folder)
        values["data"]["frames"] = frames
        config = parse_config(values)
        keras.utils.set_random_seed(seed)
        build_model(config, classes=3).save(folder / "best.keras")
        (folder / "config.yaml").write_text(dump_config(config))
        (folder / "labels.json").write_text(json.dumps(LABELS))
        made.append(folder)
    return made
