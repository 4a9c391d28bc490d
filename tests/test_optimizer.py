"""The optimizer against NumPy in float64, loss scaling, averages, and the schedules against hand values."""

import math
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_stss.config import TrainConfig, parse_config
from keras_stss.models import build_model
from keras_stss.training import optimizer as optimizer_module
from keras_stss.training.groups import parameter_groups
from keras_stss.training.optimizer import INITIAL_SCALE, MomentumSGD, learning_rate, unreached

SHAPES = {"kernel": (3, 4), "bias": (4,), "gamma": (4,)}
RATES = (0.1, 0.1, 0.01, 0.01, 0.001)


def variables():
    rng = np.random.default_rng(1)
    return [keras.Variable(rng.normal(size=shape), name=name, dtype="float32") for name, shape in SHAPES.items()]


def make(parameters, train, statistics=()):
    """The optimizer of a model that has no layers but these variables."""
    model = SimpleNamespace(trainable_variables=parameters, _flatten_layers=list)
    return MomentumSGD(parameter_groups(model, train), train, statistics)


def gradient_steps():
    rng = np.random.default_rng(2)
    return [[rng.normal(size=shape).astype(np.float32) for shape in SHAPES.values()] for _ in RATES]


def apply(optimizer, gradients, rate):
    gradients = [tf.constant(gradient, tf.float32) for gradient in gradients]
    norm = tf.linalg.global_norm(gradients)
    return bool(optimizer.apply(tf.distribute.get_strategy(), gradients, norm, tf.constant(rate, tf.float32)))


def pytorch_sgd(weights, steps, train):
    """torch.optim.SGD with groups after torch.nn.utils.clip_grad_norm_, in float64."""
    own_rates = {"kernel": 1.0, "bias": train.rates.bias, "gamma": train.rates.norm}
    own_decays = {"kernel": 1.0, "bias": train.decays.bias, "gamma": train.decays.norm}
    weights = [np.asarray(weight, np.float64) for weight in weights]
    buffers = [None] * len(weights)
    for gradients, rate in zip(steps, RATES):
        gradients = [np.asarray(gradient, np.float64) for gradient in gradients]
        norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients))
        if train.clip_norm is not None and norm > train.clip_norm:
            gradients = [gradient * (train.clip_norm / norm) for gradient in gradients]
        for i, name in enumerate(SHAPES):
            gradient = gradients[i] + train.weight_decay * own_decays[name] * weights[i]
            buffers[i] = gradient if buffers[i] is None else train.momentum * buffers[i] + gradient
            step = gradient + train.momentum * buffers[i] if train.nesterov else buffers[i]
            weights[i] = weights[i] - rate * own_rates[name] * step
    return weights


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
@pytest.mark.parametrize("clip_norm", [None, 1.5, 20.0])
def test_steps_are_those_of_pytorch(nesterov, clip_norm, momentum):
    train = TrainConfig(nesterov=nesterov, clip_norm=clip_norm, momentum=momentum, weight_decay=0.05)
    parameters, steps = variables(), gradient_steps()
    expected = pytorch_sgd([parameter.numpy() for parameter in parameters], steps, train)
    optimizer = make(parameters, train)
    assert all(apply(optimizer, gradients, rate) for gradients, rate in zip(steps, RATES))
    for parameter, value in zip(parameters, expected):
        np.testing.assert_allclose(parameter.numpy(), value, rtol=2e-6, atol=2e-6)


def test_each_group_has_its_rate_and_decay():
    train = TrainConfig(weight_decay=0.05, rates={"bias": 2.0, "norm": 0.5}, decays={"bias": 0.3, "norm": 4.0})
    parameters, steps = variables(), gradient_steps()
    expected = pytorch_sgd([parameter.numpy() for parameter in parameters], steps, train)
    optimizer = make(parameters, train)
    assert all(apply(optimizer, gradients, rate) for gradients, rate in zip(steps, RATES))
    for parameter, value in zip(parameters, expected):
        np.testing.assert_allclose(parameter.numpy(), value, rtol=2e-6, atol=2e-6)


def test_only_kernels_decay():
    parameters = variables()
    before = [parameter.numpy() for parameter in parameters]
    optimizer = make(parameters, TrainConfig(weight_decay=0.5, momentum=0.0, nesterov=False))
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
    model = build_model(config, classes=3)
    train = TrainConfig(weight_decay=0.5)
    optimizer = MomentumSGD(parameter_groups(model, train), train)
    assert all(value is variable.value for value, variable in zip(optimizer.parameters, model.trainable_variables))
    for parameter, decay in zip(model.trainable_variables, optimizer.decays, strict=True):
        assert decay == (0.5 if len(parameter.shape) > 1 else 0.0), parameter.path


def test_clipping_keeps_the_direction():
    parameters = variables()
    before = [parameter.numpy() for parameter in parameters]
    train = TrainConfig(weight_decay=0.0, momentum=0.0, nesterov=False, clip_norm=2.0)
    gradients = gradient_steps()[0]
    large = [gradient * 1e4 for gradient in gradients]
    apply(make(parameters, train), large, 1.0)
    moved = [value - parameter.numpy() for value, parameter in zip(before, parameters)]
    assert math.isclose(math.sqrt(sum((part**2).sum() for part in moved)), 2.0, rel_tol=1e-5)
    ratio = moved[0] / gradients[0]
    np.testing.assert_allclose(ratio, np.full_like(ratio, ratio.mean()), rtol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_step_that_is_not_finite_changes_nothing(bad, precision):
    """Neither weights nor momentum nor averages, with or without loss scaling; only the scale is halved."""
    parameters, steps = variables(), gradient_steps()
    optimizer = make(parameters, TrainConfig(precision=precision, ema=0.5))
    assert float(optimizer.scale) == (INITIAL_SCALE if optimizer.scaled else 1.0)
    assert apply(optimizer, steps[0], 0.1)
    state = [variable for variable in optimizer.variables if variable is not optimizer.scale]
    state = [variable for variable in [*parameters, *state] if variable is not optimizer.good_steps]
    assert len(state) == 3 * len(parameters) + 1
    before = [tf.convert_to_tensor(variable).numpy() for variable in state]
    assert int(optimizer.good_steps) == optimizer.scaled
    steps[1][0][0, 0] = bad
    assert not apply(optimizer, steps[1], 0.1)
    for variable, value in zip(state, before):
        assert tf.convert_to_tensor(variable).numpy().tobytes() == value.tobytes()
    assert float(optimizer.scale) == (INITIAL_SCALE / 2 if optimizer.scaled else 1.0)
    assert int(optimizer.good_steps) == 0
    assert apply(optimizer, steps[2], 0.1)
    assert not np.array_equal(parameters[0].numpy(), before[0])


def test_the_scale_grows_after_good_steps(monkeypatch):
    monkeypatch.setattr(optimizer_module, "GROWTH_STEPS", 3)
    optimizer = make(variables(), TrainConfig(precision="mixed_float16"))
    steps, scales = gradient_steps(), []
    for number in range(7):
        apply(optimizer, steps[number % 5], 0.0)
        scales.append(float(optimizer.scale) / INITIAL_SCALE)
    assert scales == [1, 1, 2, 2, 2, 4, 4]


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_other_precisions_do_not_scale(precision):
    optimizer = make(variables(), TrainConfig(precision=precision))
    apply(optimizer, gradient_steps()[0], 0.1)
    assert not optimizer.scaled
    assert float(optimizer.scale) == 1.0


# --- averages --------------------------------------------------------------------------------------------------------


def values(parameters):
    return [tf.convert_to_tensor(parameter).numpy() for parameter in parameters]


@pytest.mark.parametrize("ema", [0.05, 0.15, 0.999])
def test_averages_are_those_of_numpy(ema):
    """They begin with the weights after the first step, not with what the weights were when the optimizer was made."""
    parameters, statistic = variables(), keras.Variable(np.full(2, 7.0), name="moving_mean", dtype="float32")
    optimizer = make(parameters, TrainConfig(ema=ema), [statistic])
    for parameter in parameters:
        parameter.assign(1e3 * parameter + 1.0)  # as if weights were loaded
    with optimizer.averaged():
        assert parameters[0].numpy().max() > 100  # no step yet: the model's own
    expected, largest = None, 0.0
    for number, (gradients, rate) in enumerate(zip(gradient_steps(), RATES)):
        statistic.assign(np.array([number, 2.0 * number]))
        apply(optimizer, gradients, rate)
        keep = min(ema, number / (number + 10))
        now = [value.astype(np.float64) for value in values([*parameters, statistic])]
        expected = now if expected is None else [keep * a + (1 - keep) * w for a, w in zip(expected, now)]
        with optimizer.averaged():
            for parameter, value in zip([*parameters, statistic], expected):
                np.testing.assert_allclose(parameter.numpy(), value, rtol=1e-6, atol=1e-6)
            largest = max(largest, float(np.abs(values([statistic])[0] - now[-1]).max()))
    assert largest > 0.1  # the averages lag behind


def test_the_weights_come_back_exactly():
    parameters = variables()
    optimizer = make(parameters, TrainConfig(ema=0.9))
    for gradients in gradient_steps():
        apply(optimizer, gradients, 0.1)
    before, state = values(parameters), values(optimizer.variables)
    for error in (None, KeyboardInterrupt):
        try:
            with optimizer.averaged():
                assert not np.array_equal(parameters[0].numpy(), before[0])
                if error:
                    raise error
        except KeyboardInterrupt:
            pass
        for value, old in zip(values([*parameters, *optimizer.variables]), [*before, *state]):
            assert value.tobytes() == old.tobytes()
    with optimizer.averaged():
        inside = values(parameters)
    apply(optimizer, gradient_steps()[0], 0.1)  # the averages are no alias of what was put into the model
    with optimizer.averaged():
        assert not np.array_equal(parameters[0].numpy(), inside[0])
    assert not np.array_equal(parameters[0].numpy(), before[0])


def test_no_averages_without_the_key():
    parameters = variables()
    optimizer = make(parameters, TrainConfig(), [keras.Variable(1.0)])
    apply(optimizer, gradient_steps()[0], 0.1)
    before = values(parameters)
    assert len(optimizer.variables) == len(parameters) + 2
    assert optimizer.statistics == []
    with optimizer.averaged():
        assert all(np.array_equal(value, old) for value, old in zip(values(parameters), before))


# --- schedules: the rate of the step that follows so many others ------------------------------------------------------


#: Epochs, rate, milestones of the papers' step schedules.
STEPS = {
    "SELFY and MotionSqueeze, their longest": (50, 0.01, [30, 40]),
    "MotionSqueeze, Something-Something": (40, 0.01, [20, 30]),
    "MotionSqueeze, Kinetics": (80, 0.01, [40, 60]),
    "MotionSqueeze, HMDB": (35, 0.001, [15, 30]),
    "STM, Something-Something and Kinetics": (70, 0.01, [30, 40, 60]),
    "STM, UCF and HMDB": (50, 0.001, [15, 30, 45]),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("steps", [1, 7, 2641])
def test_step_schedules_of_the_papers(name, steps):
    """A tenth from the first step of the epoch on that follows so many whole ones; no epoch is cut."""
    epochs, rate, milestones = STEPS[name]
    train = TrainConfig(epochs=epochs, learning_rate=rate, schedule={"milestones": milestones})
    assert not unreached(train)
    for epoch in range(epochs):
        expected = rate / 10 ** sum(epoch >= milestone for milestone in milestones)
        for step in (epoch * steps, (epoch + 1) * steps - 1):  # the first and last of the epoch
            assert learning_rate(train, steps, step) == pytest.approx(expected, rel=1e-12), (epoch, step)


@pytest.mark.parametrize(("epochs", "steps"), [(30, 235), (40, 321)])  # Diving-48, FineGym
def test_cosine_schedules_of_the_papers(epochs, steps):
    """Ten epochs of a straight rise, then half a cosine that would be zero one step after the last."""
    train = TrainConfig(epochs=epochs, learning_rate=0.01, schedule={"kind": "cosine", "warmup_epochs": 10})
    rates = np.array([learning_rate(train, steps, step) for step in range(epochs * steps)])
    np.testing.assert_allclose(rates[: 10 * steps], 0.01 * np.arange(1, 10 * steps + 1) / (10 * steps), rtol=1e-12)
    rest = (epochs - 10) * steps
    np.testing.assert_allclose(
        rates[10 * steps :], 0.01 * np.cos(np.pi / 2 * np.arange(rest) / rest) ** 2, rtol=1e-9, atol=1e-15
    )
    assert rates[0] == pytest.approx(0.01 / (10 * steps))
    assert 0 < rates[-1] == rates.min() < 1e-7


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


def test_nothing_is_left_behind_the_last_step():
    """Not even where the warm-up takes all of the run, which a rehearsal outlasts."""
    train = TrainConfig(epochs=1, learning_rate=0.1, schedule={"kind": "cosine", "warmup_epochs": 1})
    assert [learning_rate(train, 2, step) for step in range(4)] == pytest.approx([0.05, 0.1, 0.0, 0.0])


def test_what_a_run_does_not_reach_is_told():
    (line,) = unreached(TrainConfig(epochs=14, schedule={"milestones": [10, 14, 30.5]}))
    assert "milestones: 14, 30.5 lie behind the last of 14 epochs, so the rate falls 1 time" in line
    (line,) = unreached(TrainConfig(epochs=2, schedule={"kind": "cosine", "warmup_epochs": 2}))
    assert "warmup_epochs: the rise takes 2 of 2 epochs" in line
    assert not unreached(TrainConfig(epochs=3, schedule={"milestones": [2.9], "warmup_epochs": 2.9}))


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"schedule": {"kind": "cosine", "gamma": 0.5}}, "gamma is the factor at milestones"),
        ({"schedule": {"gamma": 0.5}}, "gamma is the factor at milestones"),
        ({"momentum": 0.0}, "nesterov looks ahead along the momentum"),
        ({"batch_size": 1, "mixup": 0.2}, "batch_size must be at least 2"),
        ({"strategy": "one", "logical_cpus": 2}, "logical_cpus belongs to strategy 'mirrored'"),
        ({"logical_cpus": 10**20}, "logical_cpus"),
    ],
)
def test_what_would_do_nothing_is_refused(values, part):
    with pytest.raises(ValueError, match=part):
        TrainConfig(**values)


def test_warmup_that_ends_inside_an_epoch():
    train = TrainConfig(epochs=3, learning_rate=0.3, schedule={"warmup_epochs": 0.5})
    assert [learning_rate(train, 5, step) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.3])
