"""Groups of weights: each in one, the right one, and with the rates and decays of the config."""

import numpy as np
import pytest

from keras_stss.config import TrainConfig, parse_config
from keras_stss.models import build_model
from keras_stss.training.groups import GROUPS, describe, parameter_groups

SMALL = {"backbone": "resnet10", "width": 8}
SELFY = {"channels": 8, "window": [3, 3], "temporal_offsets": [-1, 0]}
ALL_BLOCKS = {
    "pool1": {"sequence": [{"motion_squeeze": {}}, {"local_attention": {}}, {"correlation": {}}]},
    "res2": {"selfy": SELFY},
    "res3": {"sequence": [{"stcb": {}}, {"non_local": {}}, {"cp": {}}, {"stm": {}}]},
}


def build(classes=3, **model):
    data = {"format": "something_v2", "root": "x", "frames": 4}
    model = model if "ensemble" in model else {**SMALL, **model}
    return build_model(parse_config({"data": data, "model": model}), classes=classes)


def paths(groups):
    return {group.name: [variable.path for variable in group.variables] for group in groups}


@pytest.fixture(scope="module")
def model():
    return build(insert=ALL_BLOCKS, temporal="stm")


def test_every_trainable_weight_is_in_one_group(model):
    groups = parameter_groups(model, TrainConfig())
    assert tuple(group.name for group in groups) == GROUPS
    places = sorted(place for group in groups for place in group.places)
    assert places == list(range(len(model.trainable_variables)))
    for group in groups:
        for place, variable in zip(group.places, group.variables, strict=True):
            assert model.trainable_variables[place] is variable


def test_weights_are_sorted_by_what_they_are(model):
    """The layer's place in the network tells blocks, the kind of layer normalisation, the name a kernel or bias."""
    groups = paths(parameter_groups(model, TrainConfig()))
    assert groups["head"] == ["logits/kernel"]
    assert groups["head_bias"] == ["logits/bias"]
    inserted = tuple(f"{stage}_" for stage in ALL_BLOCKS)
    names = ("motion_squeeze", "local_attention", "correlation", "selfy", "stcb", "non_local", "cp", "stm")
    of_blocks = set(groups["block"])
    for name in names:
        assert any(f"_{name}/" in path for path in of_blocks), name
    for path in of_blocks:
        assert path.endswith("/kernel")
        assert path.startswith(inserted) and any(f"_{name}/" in path for name in names), path
    for path in groups["kernel"]:
        assert path.endswith("/kernel") and not any(f"_{name}/" in path for name in names), path
    assert any(path.startswith("res3_0_") for path in groups["kernel"])  # STM blocks of the network itself
    assert groups["bias"] and all(path.endswith("/bias") for path in groups["bias"])
    others = [path for path in groups["norm"] if not path.endswith(("/gamma", "/beta"))]
    assert sorted(path.split("/")[-1] for path in others) == ["column", "filters", "row", "time"]


def test_every_member_of_an_ensemble_has_a_head():
    groups = paths(parameter_groups(build(ensemble=[{**SMALL, "frames": 2}, {**SMALL, "frames": 4}]), TrainConfig()))
    assert sorted(groups["head"]) == ["member0_logits/kernel", "member1_logits/kernel"]
    assert sorted(groups["head_bias"]) == ["member0_logits/bias", "member1_logits/bias"]
    assert groups["bias"] == groups["block"] == []


def test_rates_and_decays_are_those_of_the_config(model):
    train = TrainConfig(
        weight_decay=0.5,
        rates={"bias": 2.0, "norm": 0.25, "block": 3.0, "head": 5.0, "head_bias": 10.0},
        decays={"bias": 0.125, "norm": 0.5, "block": 2.0, "head": 4.0, "head_bias": 0.0},
    )
    groups = {group.name: group for group in parameter_groups(model, train)}
    assert {name: (group.rate, group.decay) for name, group in groups.items()} == {
        "kernel": (1.0, 0.5),
        "bias": (2.0, 0.0625),
        "norm": (0.25, 0.25),
        "block": (3.0, 1.0),
        "head": (5.0, 2.0),
        "head_bias": (10.0, 0.0),
    }
    head = next(line.split() for line in describe(groups.values()) if line.startswith("head "))
    assert head == ["head", "1", f"{64 * 3}", "×5", "2"]


def test_the_table_counts_every_trainable_parameter_once():
    model = build()
    lines = [line.split() for line in describe(parameter_groups(model, TrainConfig()))[1:]]
    assert [line[0] for line in lines] == ["kernel", "head", "head_bias", "norm"]  # groups without weights are left out
    total = sum(int(line[2].replace(",", "")) for line in lines)
    assert total == sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
