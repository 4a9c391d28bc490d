"""The optimizer against NumPy in float64, loss scaling, and the schedules against hand values."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_stss.config import TrainConfig, parse_config
from keras_stss.models import build_model
from keras_stss.training import optimizer as optimizer_module
from keras_stss.training.optimizer import INITIAL_SCALE, MomentumSGD, learning_rate

SHAPES = {"kernel": (3, 4), "bias": (4,), "gamma": (4,)}
RATES = (0.1, 0.1, 0.01, 0.01, 0.001)


def variables():
    rng = np.random.default_rng(1)
    return [keras.Variable(rng.normal(size=shape), name=name, dtype="float32") for name, shape in SHAPES.items()]


def gradient_steps():
    rng = np.random.default_rng(2)
    return [[rng.normal(size=shape).astype(np.float32) for shape in SHAPES.values()] for _ in RATES]


def apply(optimizer, gradients, rate):
    gradients = [tf.constant(gradient, tf.float32) for gradient in gradients]
    norm = tf.linalg.global_norm(gradients)
    return bool(optimizer.apply(tf.distribute.get_strategy(), gradients, norm, tf.constant(rate, tf.float32)))


def pytorch_sgd(weights, steps, train):
    """torch.optim.SGD after torch.nn.utils.clip_grad_norm_, in float64."""
    weights = [np.asarray(weight, np.float64) for weight in weights]
    buffers = [None] * len(weights)
    for gradients, rate in zip(steps, RATES):
        gradients = [np.asarray(gradient, np.float64) for gradient in gradients]
        norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients))
        if train.clip_norm is not None and norm > train.clip_norm:
            gradients = [gradient * (train.clip_norm / norm) for gradient in gradients]
        for i, name in enumerate(SHAPES):
            gradient = gradients[i] + (train.weight_decay * weights[i] if name == "kernel" else 0.0)
            buffers[i] = gradient if buffers[i] is None else train.momentum * buffers[i] + gradient
            step = gradient + train.momentum * buffers[i] if train.nesterov else buffers[i]
            weights[i] = weights[i] - rate * step
    return weights


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("clip_norm", [None, 1.5, 20.0])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_steps_are_those_of_pytorch(nesterov, clip_norm, momentum):
    train = TrainConfig(nesterov=nesterov, clip_norm=clip_norm, momentum=momentum, weight_decay=0.05)
    parameters, steps = variables(), gradient_steps()
    expected = pytorch_sgd([parameter.numpy() for parameter in parameters], steps, train)
    optimizer = MomentumSGD(parameters, train)
    assert all(apply(optimizer, gradients, rate) for gradients, rate in zip(steps, RATES))
    for parameter, value in zip(parameters, expected):
        np.testing.assert_allclose(parameter.numpy(), value, rtol=2e-6, atol=2e-6)


def test_only_kernels_decay():
    parameters = variables()
    before = [parameter.numpy() for parameter in parameters]
    optimizer = MomentumSGD(parameters, TrainConfig(weight_decay=0.5, momentum=0.0, nesterov=False))
    apply(optimizer, [np.zeros(shape) for shape in SHAPES.values()], 0.1)
    np.testing.assert_allclose(parameters[0].numpy(), before[0] * (1 - 0.05), rtol=1e-6)
    for parameter, value in zip(parameters[1:], before[1:]):
        np.testing.assert_array_equal(parameter.numpy(), value)


def test_every_kernel_of_a_model_decays_and_nothing_else():
    config = parse_config(
        {
            "data": {"format": "something_v2", "root": "x"},
            "model": {"backbone": "resnet10", "width": 8, "insert": {"res3": "selfy"}},
        }
    )
    parameters = build_model(config, classes=3).trainable_variables
    decays = MomentumSGD(parameters, TrainConfig(weight_decay=0.5)).decays
    for parameter, decay in zip(parameters, decays, strict=True):
        assert decay == (0.5 if len(parameter.shape) > 1 else 0.0), parameter.path


def test_clipping_keeps_the_direction():
    parameters = variables()
    before = [parameter.numpy() for parameter in parameters]
    train = TrainConfig(weight_decay=0.0, momentum=0.0, nesterov=False, clip_norm=2.0)
    gradients = gradient_steps()[0]
    large = [gradient * 1e4 for gradient in gradients]
    apply(MomentumSGD(parameters, train), large, 1.0)
    moved = [value - parameter.numpy() for value, parameter in zip(before, parameters)]
    assert math.isclose(math.sqrt(sum((part**2).sum() for part in moved)), 2.0, rel_tol=1e-5)
    ratio = moved[0] / gradients[0]
    np.testing.assert_allclose(ratio, np.full_like(ratio, ratio.mean()), rtol=1e-4)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_an_overflow_skips_the_step_and_halves_the_scale(bad):
    parameters, steps = variables(), gradient_steps()
    optimizer = MomentumSGD(parameters, TrainConfig(precision="mixed_float16"))
    assert float(optimizer.scale) == INITIAL_SCALE
    assert apply(optimizer, steps[0], 0.1)
    before = [tf.convert_to_tensor(variable).numpy() for variable in [*parameters, *optimizer.velocities]]
    assert int(optimizer.good_steps) == 1
    steps[1][0][0, 0] = bad
    assert not apply(optimizer, steps[1], 0.1)
    for variable, value in zip([*parameters, *optimizer.velocities], before):
        np.testing.assert_array_equal(tf.convert_to_tensor(variable).numpy(), value)
    assert float(optimizer.scale) == INITIAL_SCALE / 2
    assert int(optimizer.good_steps) == 0
    assert apply(optimizer, steps[2], 0.1)
    assert not np.array_equal(parameters[0].numpy(), before[0])


def test_the_scale_grows_after_good_steps(monkeypatch):
    monkeypatch.setattr(optimizer_module, "GROWTH_STEPS", 3)
    optimizer = MomentumSGD(variables(), TrainConfig(precision="mixed_float16"))
    steps, scales = gradient_steps(), []
    for number in range(7):
        apply(optimizer, steps[number % 5], 0.0)
        scales.append(float(optimizer.scale) / INITIAL_SCALE)
    assert scales == [1, 1, 2, 2, 2, 4, 4]


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_other_precisions_do_not_scale(precision):
    optimizer = MomentumSGD(variables(), TrainConfig(precision=precision))
    apply(optimizer, gradient_steps()[0], 0.1)
    assert not optimizer.scaled
    assert float(optimizer.scale) == 1.0


# --- schedules: the rate of the step that follows so many others ------------------------------------------------------


def test_step_schedule_of_the_papers():
    train = TrainConfig(epochs=50, learning_rate=0.01, schedule={"milestones": [30, 40]})
    steps = 7
    for epoch, rate in {0: 0.01, 29: 0.01, 30: 0.001, 39: 0.001, 40: 0.0001, 49: 0.0001}.items():
        for step in (epoch * steps, epoch * steps + steps - 1):  # the first and last of the epoch
            assert learning_rate(train, steps, step) == pytest.approx(rate), (epoch, step)


def test_step_schedule_with_warmup_and_other_factor():
    train = TrainConfig(
        epochs=10, learning_rate=0.8, schedule={"milestones": [4, 6.5], "gamma": 0.5, "warmup_epochs": 2}
    )
    rates = [learning_rate(train, 4, step) for step in range(40)]
    assert rates[:8] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert rates[8:16] == pytest.approx([0.8] * 8)
    assert rates[16:26] == pytest.approx([0.4] * 10)
    assert rates[26:] == pytest.approx([0.2] * 14)


def test_cosine_schedule():
    train = TrainConfig(epochs=30, learning_rate=0.02, schedule={"kind": "cosine"})
    assert learning_rate(train, 10, 0) == pytest.approx(0.02)
    assert learning_rate(train, 10, 100) == pytest.approx(0.015)  # a third: cos 60° = 1/2
    assert learning_rate(train, 10, 150) == pytest.approx(0.01)
    assert learning_rate(train, 10, 200) == pytest.approx(0.005)
    assert learning_rate(train, 10, 300) == pytest.approx(0.0, abs=1e-9)
    assert 0 < learning_rate(train, 10, 299) < 1e-5


def test_cosine_schedule_with_warmup():
    train = TrainConfig(epochs=30, learning_rate=0.02, schedule={"kind": "cosine", "warmup_epochs": 10})
    rates = [learning_rate(train, 5, step) for step in range(150)]
    assert rates[0] == pytest.approx(0.02 / 50)
    assert rates[24] == pytest.approx(0.01)
    assert rates[49] == rates[50] == pytest.approx(0.02)
    assert rates[100] == pytest.approx(0.01)
    assert np.argmax(rates) == 49
    assert all(np.diff(rates[50:]) < 0)


def test_warmup_that_ends_inside_an_epoch():
    train = TrainConfig(epochs=3, learning_rate=0.3, schedule={"warmup_epochs": 0.5})
    assert [learning_rate(train, 5, step) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.3])
