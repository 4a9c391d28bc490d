"""Training on two devices: the CPU split in two, in a process of its own, since devices are fixed at first use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from conftest import tiny_values

from keras_stss.cli import main
from keras_stss.config import ConfigError, TrainConfig
from keras_stss.training.workers.distribute import components, make_strategy

# argv: the config, the folder of the runs. Prints one JSON object.
SCRIPT = """
import json, os, sys
import keras
import numpy as np
import tensorflow as tf
from keras_stss.cli import main
from keras_stss.config import ConfigError, TrainConfig, load_config
from keras_stss.data.annotations import read_annotations
from keras_stss.evaluation.evaluate import Scorer, evaluate
from keras_stss.models import build_model, load_model
from keras_stss.training import loop
from keras_stss.training.batch_norm import prepare_batch_norm
from keras_stss.training.workers.distribute import (
    average_statistics, broadcast, components, from_chief, gather, is_chief, make_strategy, spread_seeds, workers)
from keras_stss.training.groups import parameter_groups
from keras_stss.training.optimizer import MomentumSGD
from keras_stss.training.step import Figures, make_step

path, folder = sys.argv[1:]
config = load_config(path)
report = {}
two = make_strategy(config.train)
one = make_strategy(config.train.model_copy(update={"strategy": "one"}))
report["replicas"] = [two.num_replicas_in_sync, one.num_replicas_in_sync]

def refusal(**values):
    try:
        make_strategy(TrainConfig(logical_cpus=2, **values))
    except Exception as error:
        return f"{type(error).__name__}: {error}"

report["odd batch"] = refusal(strategy="mirrored", batch_size=5)
report["odd parts"] = refusal(strategy="mirrored", batch_size=6, accumulate=2)
report["alone"] = [workers(two), is_chief(two), from_chief(two, {"a": 1}), gather(two, "b")]
report["unknown device"] = refusal(devices=["CPU:0", "GPU:7"])
report["device twice"] = refusal(devices=["CPU:0", "CPU:0"], batch_size=4)
report["more CPUs"] = None
try:
    make_strategy(TrainConfig(logical_cpus=3, strategy="mirrored"))
except ConfigError as error:
    report["more CPUs"] = str(error)
report["chosen"] = make_strategy(TrainConfig(devices=["CPU:1"])).num_replicas_in_sync
report["auto"] = make_strategy(TrainConfig(logical_cpus=2)).num_replicas_in_sync

def batches():
    rng = np.random.default_rng(0)
    for number in range(3):
        frames = rng.integers(0, 256, (4, 2, 16, 16, 3), dtype=np.uint8)
        label = rng.integers(0, 3, 4).astype(np.int32)
        yield {"frames": frames, "label": label, "position": np.arange(4)}

def steps(strategy, name, **settings):
    # three steps; what they return, and all variables after them
    keras.utils.set_random_seed(1)
    train = config.train.model_copy(update=settings)
    with strategy.scope():
        model = build_model(config, classes=3)
        prepare_batch_norm(model, train)
        optimizer = MomentumSGD(parameter_groups(model, train), train)
    step = make_step(strategy, model, optimizer, train)
    data = tf.data.Dataset.from_generator(batches, output_signature={
        "frames": tf.TensorSpec((4, 2, 16, 16, 3), tf.uint8), "label": tf.TensorSpec((4,), tf.int32),
        "position": tf.TensorSpec((4,), tf.int64)})
    figures = []
    for batch in strategy.experimental_distribute_dataset(data):
        result = step(batch, tf.constant(0.01), tf.constant(0.0))
        figures.append(Figures.read(result)[:4])
    report[name] = figures
    learned = {id(v) for v in model.trainable_variables}
    np.savez(os.path.join(folder, name + ".npz"), **{
        ("" if id(v) in learned or "moving" not in getattr(v, "path", "") else "moving ") + str(i):
        np.asarray(components(v)[0]) for i, v in enumerate([*model.variables, *optimizer.velocities])})
    copies = [[np.asarray(copy) for copy in components(v)] for v in [*model.trainable_variables, *optimizer.velocities]]
    report[name + " copies"] = sorted({len(group) for group in copies})
    report[name + " copies differ"] = max(float(np.abs(copy - group[0]).max()) for group in copies for copy in group)
    return model

KINDS = {
    "synchronized": ({"sync_batch_norm": True}, {}),
    "parts": ({}, {"accumulate": 2}),
    "compiled": ({"xla": True, "accumulate": 2, "batch_norm": "frozen"}, {"accumulate": 1}),
}
for kind, (settings, of_one) in KINDS.items():
    steps(one, kind + " one", **settings | of_one)
    model = steps(two, kind + " two", **settings)

# --- statistics that drift apart, and are averaged
def statistics():
    values = [[np.asarray(copy) for copy in components(v)] for v in model.non_trainable_variables
              if "moving" in v.path]
    return values

for variable in model.non_trainable_variables:
    if "moving" in variable.path:
        for number, copy in enumerate(components(variable)):
            copy.assign(tf.fill(copy.shape, 1.0 + 2.0 * number))
average_statistics(two, model)
report["statistics"] = sorted({float(x) for group in statistics() for copy in group for x in np.ravel(copy)})
report["statistics copies"] = sorted({len(group) for group in statistics()})

# --- every replica takes the first one's values; seeds are spread from it
for number, variable in enumerate(model.variables):
    for place, copy in enumerate(components(variable)):
        copy.assign(tf.cast(tf.fill(copy.shape, number + 100 * place), copy.dtype))
broadcast(two, model.variables)
report["first"] = [sorted({float(x) for copy in components(v) for x in np.ravel(copy)}) for v in model.variables]
with two.scope():
    dropping = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5, seed=7)])
spread_seeds(two, dropping)
report["seeds"] = [np.asarray(copy).tolist() for copy in components(dropping.non_trainable_variables[0])]

# --- whole runs
def train(name, stop=None):
    whole = loop.Training._one_step
    def one_step(training, batch, progress):
        if training.state["step"] == stop:
            raise KeyboardInterrupt
        whole(training, batch, progress)
    loop.Training._one_step = one_step
    try:
        return main(["train", "--config", path, f"train.run={os.path.join(folder, name)}"])
    finally:
        loop.Training._one_step = whole

report["codes"] = [train("whole"), train("stopped", stop=7), train("stopped")]

# --- scores
labels = json.load(open(os.path.join(folder, "whole", "labels.json")))
clips = read_annotations(config.data).validation
scored = {}
with two.scope():
    mirrored = load_model(os.path.join(folder, "whole"))
single = load_model(os.path.join(folder, "whole"))
for name, scorer in (("two", Scorer(mirrored, two)), ("one", Scorer(single))):
    for batch_size in (3, 7) if name == "two" else (2,):
        figures, scores = evaluate(scorer, clips, labels, config.data, batch_size)
        order = np.argsort(scores["index"])
        scored[f"{name} {batch_size}"] = {**figures, "index": scores["index"][order].tolist(),
                                         "logits": scores["logits"][order].tolist()}
report["scored"] = scored
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mirrored")


@pytest.fixture(scope="module")
def report(clip_set, folder):
    values = tiny_values(clip_set, folder / "unused")
    values["train"] |= {"strategy": "mirrored", "logical_cpus": 2, "checkpoint_steps": 3, "clip_norm": 1.0}
    values["model"]["insert"] = {}
    path = folder / "mirrored.yaml"
    path.write_text(yaml.safe_dump(values))
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(folder)],
        cwd=Path(__file__).resolve().parent.parent,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},  # compiles in a fraction of the time
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_two_devices_are_used(report):
    assert report["replicas"] == [2, 1]
    assert report["chosen"] == 1
    assert report["auto"] == 2


KINDS = ["synchronized", "parts", "compiled"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_devices_train_as_one(report, folder, kind):
    """A replica normalises over its own clips, so a fair comparison takes one of these cases.

    synchronized: statistics over the clips of both.
    parts: one device takes the batch in two parts, which are what the replicas see.
    compiled: batch normalisation in inference mode; each replica takes its share in two parts, compiled by XLA.

    The moving statistics of parts are of one after the other on one device, and of each apart on two.
    """
    one, two = report[f"{kind} one"], report[f"{kind} two"]
    assert len(one) == 3
    np.testing.assert_allclose(np.array(two), np.array(one), rtol=1e-5, atol=1e-5)
    with np.load(folder / f"{kind} one.npz") as first, np.load(folder / f"{kind} two.npz") as second:
        assert first.files == second.files
        for name in first.files:
            if not (name.startswith("moving") and kind == "parts"):
                np.testing.assert_allclose(second[name], first[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert one[0][0] != one[2][0]


def test_the_copies_of_the_weights_stay_equal(report):
    for kind in KINDS:
        assert report[f"{kind} two copies"] == [2]
        assert report[f"{kind} one copies"] == [1]
        assert report[f"{kind} two copies differ"] == 0.0


def test_every_replica_takes_the_first_ones_values(report):
    assert report["first"] == [[float(number)] for number in range(len(report["first"]))]
    assert len(report["first"]) > 20


def test_replicas_draw_different_numbers(report):
    """The first one's seed is as it was, so that a run's checkpoint, which holds it, says all of them."""
    first, second = report["seeds"]
    assert first == [7, 0]
    assert second[0] != 7


def test_one_worker_needs_nobody(report):
    assert report["alone"] == [[0, 1], True, {"a": 1}, ["b"]]


def test_statistics_are_averaged_on_all_devices(report):
    assert report["statistics copies"] == [2]
    assert report["statistics"] == [2.0]  # of 1 and 3


def test_a_batch_that_cannot_be_shared_is_refused(report):
    assert "ConfigError: train.batch_size must be a multiple of the number of devices" in report["odd batch"]
    assert "Received: 5 clips for 2 devices (CPU:0, CPU:1)" in report["odd batch"]
    assert "share of train.batch_size must be a multiple of train.accumulate" in report["odd parts"]


def test_an_unknown_device_is_refused(report):
    assert report["unknown device"] == "ConfigError: train.devices names GPU:7; here are CPU:0, CPU:1"


def test_a_device_named_twice_is_refused(report):
    assert report["device twice"].startswith("ConfigError: ")
    assert "CPU:0" in report["device twice"]


def test_devices_cannot_be_split_later(report):
    assert "train.logical_cpus=3 must be set before" in report["more CPUs"]
    tf.config.list_logical_devices()  # starts the devices of this process
    with pytest.raises(ConfigError, match="must be set before TensorFlow has started"):
        make_strategy(TrainConfig(logical_cpus=5))


def test_a_whole_run_and_its_continuation(report, folder):
    assert report["codes"] == [0, 130, 0]
    runs = [folder / name for name in ("whole", "stopped")]
    whole, stopped = ([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs)
    assert [row["epoch"] for row in whole] == [1, 2]
    for row, other in zip(whole, stopped, strict=True):
        for key in ("clips_per_second", "wait_share", "board_share"):
            del row[key], other[key]
        assert other == pytest.approx(row, rel=1e-5)
    first, second = (np.load(run / "checkpoints" / "step-00000010.npz") for run in runs)
    assert first.files == second.files
    for name in first.files:
        if name != "progress":
            np.testing.assert_allclose(second[name], first[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert "2 device(s)" in (runs[0] / "log.txt").read_text()
    assert "continuing at step 6 of 10" in (runs[1] / "log.txt").read_text()


def test_two_devices_score_as_one(report, folder):
    scored = report["scored"]
    one = scored.pop("one 2")
    assert one["index"] == list(range(7))
    assert one["clips"] == 7
    assert scored.keys() == {"two 3", "two 7"}  # rounded up to 4 and 8: the last batch has clips on one device only
    for figures in scored.values():
        np.testing.assert_allclose(figures.pop("logits"), one["logits"], rtol=1e-4, atol=1e-5)
        assert figures.pop("index") == one["index"]
        assert figures.pop("unreadable") == {}
        assert figures == pytest.approx({key: one[key] for key in figures}, rel=1e-4)


def test_a_mirrored_run_is_evaluated_on_one_device(report, folder, capsys):
    assert main(["evaluate", str(folder / "whole"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    best = rows[rows[-1]["best_epoch"] - 1]
    for key in ("top1", "top5", "mean_class", "loss", "clips"):
        assert figures[key] == pytest.approx(best[f"val_{key}"], rel=1e-4), key


def test_a_plain_variable_is_its_own_only_copy():
    variable = tf.Variable(1.0)
    assert components(variable) == [variable]
