"""The keys of the data section that say how a sample is cut from a clip."""

import os

import pytest

from keras_stss.config import ConfigError, load_config, parse_config

DATA = {"format": "clips", "root": "clips", "annotations": "clips.csv"}


def parse(**data):
    return parse_config({"data": {**DATA, **data}}).data


def test_defaults_are_off():
    data = parse()
    assert data.sampling == "segment" and data.augment.crop == "multi_scale"
    jitter = data.augment.color_jitter
    assert not any((jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue))
    assert not any((data.augment.grayscale, data.augment.rand_augment.ops, data.augment.erasing))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_workers_are_the_cores_of_the_process():
    """Slurm and containers give a job some of a machine's."""
    given = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(given)})
        assert parse().workers == 1
    finally:
        os.sched_setaffinity(0, given)
    assert parse().workers == len(given)


def test_values_arrive(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("data: {format: clips, root: x, annotations: c.csv, augment: {grayscale: 0.2}}\n")
    overrides = ["data.sampling=dense", "data.augment.crop=random_scale", "data.augment.short_sides=[256, 320]"]
    overrides += ["data.augment.color_jitter.hue=0.1", "data.augment.rand_augment.ops=2"]
    data = load_config(path, overrides).data
    assert data.sampling == "dense" and data.augment.short_sides == (256, 320)
    assert data.augment.color_jitter.hue == 0.1 and data.augment.rand_augment.ops == 2 and data.augment.grayscale == 0.2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampling": "sparse"}, "data.sampling"),
        ({"sampling": "dense", "frames": 65}, "at most 64 frames. Received: frames=65"),
        ({"augment": {"crop": "corner"}}, "data.augment.crop"),
        ({"augment": {"crops": "multi_scale"}}, "Did you mean crop?"),
        ({"augment": {"short_sides": [256, 320]}}, "short_sides belongs to crop 'random_scale'"),
        ({"augment": {"crop": "random_scale", "short_sides": [320, 256]}}, "must be above 0 and rise"),
        ({"augment": {"crop": "random_scale", "short_sides": [200, 256]}}, "not be smaller than crop"),
        ({"augment": {"area": [0.1, 1]}}, "area belongs to crop 'random_resized'"),
        ({"augment": {"crop": "random_resized", "area": [0, 1]}}, "must be above 0 and rise"),
        ({"augment": {"crop": "random_resized", "area": [0.1, 1.1]}}, "data.augment.area"),
        ({"augment": {"grayscale": 1.5}}, "data.augment.grayscale"),
        ({"augment": {"erasing": -0.1}}, "data.augment.erasing"),
        ({"augment": {"erasing": True}}, "must not be true or false"),
        ({"augment": {"color_jitter": {"hue": 0.6}}}, "data.augment.color_jitter.hue"),
        ({"augment": {"color_jitter": {"contrast": -1}}}, "data.augment.color_jitter.contrast"),
        ({"augment": {"color_jitter": {"bright": 1}}}, "Did you mean brightness?"),
        ({"augment": {"rand_augment": {"ops": -1}}}, "data.augment.rand_augment.ops"),
        ({"augment": {"rand_augment": {"magnitude": 11}}}, "data.augment.rand_augment.magnitude"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(ConfigError) as caught:
        parse(**given)
    assert message in str(caught.value)
