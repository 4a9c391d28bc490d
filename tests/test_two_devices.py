"""Losses, normalisation and averages on two devices: the CPU split in two, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Prints one JSON object: figures of two replicas that share a batch against one that has the whole.
SCRIPT = """
import json, os
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from keras_stss.config import TrainConfig
from keras_stss.layers import ConvBN, ConvExtractor, SpatioTemporalSelfSimilarity
from keras_stss.training.batch_norm import layers, prepare_batch_norm, statistics
from keras_stss.training.workers.distribute import broadcast, components
from keras_stss.training.groups import parameter_groups
from keras_stss.training.losses import cross_entropy, global_total, twins
from keras_stss.training.optimizer import MomentumSGD

two, one = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), tf.distribute.OneDeviceStrategy("CPU:0")
report = {}

def distance(first, second):
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(first, second, strict=True))

def shared(strategy, arrays):
    count = strategy.num_replicas_in_sync
    return [strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(np.split(array, count)[context.replica_id_in_sync_group])) for array in arrays]

# --- the losses of both views, from logits that are a product with common weights; the first clips have no class 2
rng = np.random.default_rng(0)
views = [rng.normal(0.3, 1, (8, 6)).astype("float32") for _ in range(2)]
start, labels = rng.normal(size=(6, 5)).astype("float32"), rng.integers(0, 5, 8)
views[0][:4], start[:, 2] = views[0][:4] * [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]

def losses(strategy):
    with strategy.scope():
        weights = tf.Variable(start)
    def replica(first, second, labels):
        total = global_total(tf.distribute.get_replica_context())
        with tf.GradientTape() as tape:
            logits = [tf.matmul(view, weights) for view in (first, second)]
            loss = sum(tf.reduce_sum(cross_entropy(each, labels, 0.1)) / 8 for each in logits) / 2
            correlation = 0.5 * twins(*logits, 0.3, total)
            both = loss + correlation
        gradient = tape.gradient(both, weights)
        count = tf.distribute.get_replica_context().num_replicas_in_sync
        return tf.distribute.get_replica_context().all_reduce("SUM", [loss + correlation / count, gradient])
    values = tf.function(lambda *parts: strategy.run(replica, args=parts))(*shared(strategy, [*views, labels]))
    return [[np.asarray(copy) for copy in strategy.experimental_local_results(value)] for value in values]

(loss,), (gradient,) = losses(one)
report["losses"] = [float(part) for part in losses(two)[0]]
report["loss"] = float(loss)
report["gradients differ"] = [distance([part], [gradient]) for part in losses(two)[1]]
report["gradient"] = float(np.abs(gradient).max())

# --- a small network with both kinds of normalisation, trained on two devices with synchronized statistics
def network(implementation):
    inputs = keras.Input((3, 6, 6, 3))
    x = ConvBN(4, 3, name="conv")(inputs)
    x = SpatioTemporalSelfSimilarity((0, 1), (3, 3), name="stss")(x)
    x = ConvExtractor((4, 5), implementation=implementation, name="extract")(x)
    x = keras.layers.Flatten()(keras.ops.mean(x, axis=(2, 3)))
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(x))

clips = [(rng.normal(1.0, 2.0, (4, 3, 6, 6, 3)).astype("float32"), rng.integers(0, 3, 4)) for _ in range(3)]
clips[2][0][0, 0, 0, 0, 0] = np.nan  # the last step changes no weight

def train(strategy, implementation, synchronized):
    keras.utils.set_random_seed(3)
    config = TrainConfig(sync_batch_norm=synchronized, ema=0.9, batch_size=4, rates={"head": 5.0})
    with strategy.scope():
        model = network(implementation)
        prepare_batch_norm(model, config)
        optimizer = MomentumSGD(parameter_groups(model, config), config, statistics(model))
    def replica(inputs, labels):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(cross_entropy(model(inputs, training=True), labels)) / 4
        gradients = tape.gradient(loss, optimizer.parameters)
        return tf.distribute.get_replica_context().all_reduce("SUM", gradients)
    @tf.function
    def step(inputs, labels):
        gradients = strategy.run(replica, args=(inputs, labels))
        first = [strategy.experimental_local_results(gradient)[0] for gradient in gradients]
        return optimizer.apply(strategy, gradients, tf.linalg.global_norm(first), tf.constant(0.1))
    applied = [bool(step(*shared(strategy, clip))) for clip in clips[:2]]
    statistics_then = [np.asarray(components(v)[0]) for v in statistics(model)]
    before = [np.asarray(copy) for v in [*optimizer.parameters, *optimizer.variables] for copy in components(v)]
    applied.append(bool(step(*shared(strategy, clips[2]))))
    after = [np.asarray(copy) for v in [*optimizer.parameters, *optimizer.variables] for copy in components(v)]
    return model, optimizer, {
        "applied": applied,
        "kept": distance(before, after),
        "statistics": statistics_then,
        "state": [np.asarray(components(v)[0]) for v in [*optimizer.parameters, *optimizer.variables]],
        "copies": sorted({len(components(v)) for v in optimizer.variables}),
        "copies differ": max(distance([components(v)[0]], [copy]) for v in [*optimizer.parameters, *optimizer.variables]
                             for copy in components(v)),
    }

for implementation in ("auto", "reference"):
    whole, split = (train(strategy, implementation, strategy is two) for strategy in (one, two))
    report[implementation] = {
        "state": distance(whole[2]["state"], split[2]["state"]),
        "statistics": distance(whole[2]["statistics"], split[2]["statistics"]),
        **{key: split[2][key] for key in ("applied", "kept", "copies", "copies differ")},
    }

# --- averages on both devices, in the weights' place and back
model, optimizer, _ = split
held = [np.asarray(components(v)[0]) for v in optimizer.variables]
broadcast(two, [*model.variables, *optimizer.variables])  # one exchange holds the whole state
report["broadcast"] = distance(held, [components(v)[1] for v in optimizer.variables])
copies = [copy for v in optimizer.parameters for copy in components(v)]
shadows = [copy for v in optimizer.averages.shadows[:len(optimizer.parameters)] for copy in components(v)]
own = [np.asarray(copy) for copy in copies]
report["lag"] = distance(own, shadows)
try:
    with optimizer.averaged():
        report["averaged"] = distance(copies, shadows)
        seen = two.run(tf.function(lambda: tf.convert_to_tensor(optimizer.parameters[0])))
        report["seen"] = [distance([part], shadows[:1]) for part in two.experimental_local_results(seen)]
        raise KeyboardInterrupt
except KeyboardInterrupt:
    report["back"] = all(np.asarray(copy).tobytes() == value.tobytes() for copy, value in zip(copies, own))

# --- without synchronization statistics drift apart, the averages' too: these are listed, to be averaged over devices
_, optimizer, figures = train(two, "reference", False)
report["drift"] = max(distance([components(v)[0]], [components(v)[1]]) for v in optimizer.statistics)
report["weights differ"] = max(
    distance([components(v)[0]], [components(v)[1]]) for v in [*optimizer.parameters, *optimizer.velocities])
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_losses_are_over_the_global_batch(report):
    """Cross-entropy and the correlation of all clips' classes, in value and gradient, though each has a half."""
    assert report["losses"] == [pytest.approx(report["loss"], rel=1e-6)] * 2
    assert report["gradient"] > 0.1
    assert max(report["gradients differ"]) < 1e-6


@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_synchronized_statistics_are_those_of_one_device(report, implementation):
    """Two devices that share a batch against one with ordinary normalisation; also in the motion block's extractor."""
    figures = report[implementation]
    assert figures["state"] < 1e-5
    assert figures["statistics"] < 1e-5
    assert figures["copies"] == [2]
    assert figures["copies differ"] == 0.0


def test_a_step_that_is_not_finite_changes_no_copy(report):
    assert report["auto"]["applied"] == [True, True, False]
    assert report["auto"]["kept"] == 0.0


def test_averages_take_the_weights_place_on_both_devices(report):
    assert report["broadcast"] == 0.0
    assert report["lag"] > 1e-4
    assert report["averaged"] == 0.0
    assert report["seen"] == [0.0, 0.0]
    assert report["back"] is True


def test_what_drifts_apart_is_listed(report):
    assert report["drift"] > 1e-3
    assert report["weights differ"] == 0.0
