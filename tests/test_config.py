"""The YAML schema: what it refuses and how it says so."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from keras_stss.config import (
    BLOCKS,
    ConfigError,
    dump_config,
    find_config,
    list_keys,
    load_config,
    parse_config,
)

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = sorted((REPOSITORY / "configs").glob("*.yaml"))
DATA = {"format": "clips", "root": "clips", "annotations": "clips.csv"}


def values(**sections):
    return {"data": dict(DATA), **sections}


def refusal(given):
    with pytest.raises(ConfigError) as caught:
        parse_config(given)
    return str(caught.value)


def write(tmp_path, content, name="some.yaml"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def minimal_text():
    return yaml.safe_dump(values())


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "key", "nearest"),
    [
        (values(trian={}), "trian", "train"),
        (values(train={"epoch": 3}), "train.epoch", "epochs"),
        ({"data": {**DATA, "frame": 8}}, "data.frame", "frames"),
        (values(model={"backbones": "resnet18"}), "model.backbones", "backbone"),
        (values(evaluate={"batchsize": 3}), "evaluate.batchsize", "batch_size"),
        (values(train={"schedule": {"milestone": [3]}}), "train.schedule.milestone", "milestones"),
        (values(model={"insert": {"res3": {"self": {}}}}), "model.insert.res3.self", "selfy"),
        (values(model={"insert": {"res3": "selfi"}}), "model.insert.res3.selfi", "selfy"),
        (values(model={"insert": {"res3": {"selfy": {"chanels": 8}}}}), "model.insert.res3.selfy.chanels", "channels"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(given, key, nearest):
    message = refusal(given)
    assert f"unknown key {key}." in message
    assert f"Did you mean {nearest}?" in message
    assert "\n" not in message


def test_an_unknown_stage_is_named_with_the_stages():
    message = refusal(values(model={"insert": {"rse3": "selfy"}}))
    assert "model.insert: unknown stage rse3." in message
    assert "Did you mean res3?" in message
    assert "pool1, res2, res3, res4, res5" in message
    message = refusal(values(model={"backbone": "mobilenet_v2", "insert": {"res3": "selfy"}}))
    assert "Stages of mobilenet_v2 are stage1, stage2" in message


def test_blocks_of_a_stage_follow_one_another_or_stand_side_by_side():
    """A list keeps its order and may name a block twice; the forms read back as they were written."""
    listed = [{"stcb": {}}, "selfy", {"selfy": {"window": [5, 5]}}]
    config = parse_config(values(model={"insert": {"res3": listed, "res4": {"parallel": ["selfy", "stcb"]}}}))
    names = [member.named() for member in config.model.insert["res3"].sequence]
    assert names == [["stcb"], ["selfy"], ["selfy"]]
    assert config.model.insert["res3"].sequence[2].selfy.window == (5, 5)
    assert [member.named() for member in config.model.insert["res4"].parallel] == [["selfy"], ["stcb"]]
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    message = refusal(values(model={"insert": {"res3": [{"selfy": {"windo": [5, 5]}}]}}))
    assert "unknown key model.insert.res3.sequence.0.selfy.windo." in message
    assert "Did you mean window?" in message


@pytest.mark.parametrize(
    ("insert", "says"),
    [
        ({"parallel": ["selfy"]}, "at least 2"),
        ({"parallel": ["selfy", "non_local"]}, "one block among selfy, motion_squeeze, stcb. Received: non_local"),
        ({"parallel": ["selfy", ["stcb", "stcb"]]}, "Received: sequence"),
        ({"sequence": ["selfy"], "stcb": {}}, "sequence stands alone"),
        ([], "at least 1"),
        ({"selfy": {"variant": "released", "integration": "fc"}}, "released"),
        ({"selfy": {"extraction": "soft_argmax", "extraction_channels": [4]}}, "has no layers"),
        ({"selfy": {"similarity": "embedded_gaussian", "implementation": "native"}}, "no native"),
        ({"motion_squeeze": {"transform_kernels": [3]}}, "one more than transform_channels"),
        ({"motion_squeeze": {"transform_kernels": [3, 2, 3, 3]}}, "odd"),
    ],
)
def test_blocks_that_do_not_go_together_are_refused(insert, says):
    assert says in refusal(values(model={"insert": {"res3": insert}}))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"backbone": "i3d"}, "temporal of backbone i3d must be 3d. Received: temporal=tsm"),
        ({"backbone": "mobilenet_v2", "temporal": "stm"}, "must be tsn or tsm"),
        ({"stm": {"reduction": 8}}, "belongs to temporal 'stm'"),
        ({"temporal": "stm", "stm": {"kernels": "frequency", "motion": "ordinary"}}, "mix no channels"),
        ({"stem_kernel": [1, 7, 7]}, "belong to backbone 'i3d'"),
        ({"ensemble": [{"frames": 4}, {"frames": 8}], "backbone": "resnet18"}, "Received: backbone"),
        ({"ensemble": [{"frames": 8}]}, "at least two"),
        ({"ensemble": [{"frames": 4}, {"frames": 4}]}, "data.frames must be"),
        ({"ensemble": [{}, {"frames": 8}]}, "model.ensemble.0.frames is missing"),
    ],
)
def test_models_that_do_not_go_together_are_refused(model, says):
    assert says in refusal(values(model=model))


def test_overrides_reach_the_members_of_a_list():
    name = "selfynet_tsm_resnet50_en"
    config = load_config(name, ["model.ensemble.0.pretrained=8", "model.ensemble.1.insert.res3.selfy.window=[5,5]"])
    assert [member.pretrained for member in config.model.ensemble] == ["8", None]
    assert [member.insert["res3"].selfy.window for member in config.model.ensemble] == [(9, 9), (5, 5)]
    for override, says in (
        ("model.ensemble.2.width=8", "sections 0 to 1. Received: 2"),
        ("model.ensemble.first.width=8", "Received: first"),
        ("model.ensemble.0=8", "is a list"),
        ("model.ensemble.0.widht=8", "Did you mean width?"),
    ):
        with pytest.raises(ConfigError, match=re.escape(says)):
            load_config(name, [override])


def test_an_ensemble_reads_back_as_it_was_written():
    config = parse_config(values(model={"ensemble": [{"frames": 4, "insert": {"res3": "selfy"}}, {"frames": 8}]}))
    assert config.model.ensemble[0].insert["res3"].selfy.window == (9, 9)
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_a_key_like_none_other_gets_no_guess():
    message = refusal(values(train={"zzzzqqq": 1}))
    assert "Did you mean" not in message
    assert "Known here: run, resume, epochs, batch_size" in message


def test_all_faults_come_at_once():
    given = values(train={"epoch": 3, "batch_size": 0, "learning_rate": "fast"}, model={"backbone": "resnet19"})
    given["data"]["crop"] = -1
    lines = refusal(given).splitlines()
    assert len(lines) == 5
    for key in ("data.crop", "model.backbone", "train.batch_size", "train.learning_rate", "train.epoch"):
        assert sum(f" {key}" in line for line in lines) == 1, key
    assert all(line.startswith("config: ") for line in lines)


def test_a_missing_key_is_named():
    message = refusal({"data": {"format": "clips"}})
    assert "data.root is missing" in message
    assert refusal({}) == "config: data is missing"


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.format", "kinetics700"),
        ("data.root", [5]),
        ("data.frames", 0),
        ("data.frames", 2.5),
        ("data.resize", [240]),
        ("data.resize", [0, 320]),
        ("data.crop", "large"),
        ("data.scales", []),
        ("data.scales", [1.5]),
        ("data.scales", 0.5),
        ("data.flip", "perhaps"),
        ("data.workers", 0),
        ("data.max_unreadable", 1.5),
        ("data.validation_share", 1.0),
        ("model.backbone", "vgg"),
        ("model.width", 0),
        ("model.temporal", "tsl"),
        ("model.shift_divisor", 1),
        ("model.dropout", 1.0),
        ("model.insert", ["selfy"]),
        ("train.epochs", 0),
        ("train.epochs", None),
        ("train.batch_size", [4]),
        ("train.learning_rate", 0),
        ("train.momentum", 1.0),
        ("train.weight_decay", -1e-4),
        ("train.clip_norm", 0),
        ("train.label_smoothing", 1.0),
        ("train.schedule", "cosine"),
        ("train.seed", -1),
        ("train.seed", 2**31),
        ("train.strategy", "many"),
        ("train.devices", "GPU:0"),
        ("train.logical_cpus", 0),
        ("train.precision", "float16"),
        ("train.checkpoint_steps", 0),
        ("train.keep_checkpoints", 0),
        ("train.schedule.kind", "linear"),
        ("train.schedule.gamma", 0),
        ("train.schedule.gamma", 1.1),
        ("train.schedule.warmup_epochs", -1),
        ("evaluate.batch_size", 0),
        ("evaluate.every", 0),
        ("model.insert.res3.selfy.window", [9]),
        ("model.insert.res3.selfy.window", [9, 8]),
        ("model.insert.res3.selfy.temporal_offsets", []),
        ("model.insert.res3.selfy.temporal_offsets", [1, 1]),
        ("model.insert.res3.selfy.strides", 3),
        ("model.insert.res3.selfy.similarity", "euclidean"),
        ("model.insert.res3.selfy.extraction_channels", []),
        ("model.insert.res3.selfy.integration_channels", [0]),
        ("model.insert.res3.selfy.variant", "mine"),
        ("model.insert.res3", {}),
    ],
)
def test_a_wrong_value_is_refused_under_its_key(key, value):
    given = values(model={"insert": {}}, train={}, evaluate={})
    *parents, last = key.split(".")
    place = given
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    message = refusal(given)
    assert all(line.startswith(f"config: {key}") for line in message.splitlines()), message


@pytest.mark.parametrize("value", [True, float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["learning_rate", "clip_norm", "weight_decay"])
def test_a_rate_must_be_a_finite_number(key, value):
    assert f"train.{key}" in refusal(values(train={key: value}))


@pytest.mark.parametrize("key", ["epochs", "batch_size"])
def test_yes_is_no_count(key):
    assert f"train.{key}" in refusal(values(train={key: True}))


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"data": {**DATA, "resize": [64, 96], "crop": 65}}, "crop must not exceed"),
        ({"data": {**DATA, "resize": 64, "crop": 65}}, "crop=65, resize=64"),
        ({"data": {"format": "clips", "root": "x"}}, "needs data.annotations"),
        ({"data": {**DATA, "train": "train.csv"}}, "data.train does not belong to format 'clips'"),
        ({"data": {"format": "something_v2", "root": "x", "holdout": "A"}}, "data.holdout does not belong"),
        (values(train={"schedule": {"kind": "cosine", "milestones": [3]}}), "milestones belong to kind 'step'"),
        (values(train={"schedule": {"milestones": [5, 3]}}), "milestones must rise"),
        (values(train={"schedule": {"milestones": [3, 3]}}), "milestones must rise"),
        (values(train={"strategy": "one", "devices": ["GPU:0"]}), "devices belong to strategy 'mirrored'"),
    ],
)
def test_values_that_do_not_fit_together(given, part):
    assert part in refusal(given)


def test_a_bare_block_name_means_its_defaults():
    short = parse_config(values(model={"insert": {"res3": "selfy"}}))
    assert short == parse_config(values(model={"insert": {"res3": {"selfy": None}}}))
    assert short.model.insert["res3"].selfy.window == (9, 9)


def test_a_group_may_be_a_number():
    assert parse_config({"data": {**DATA, "holdout": 3}}).data.holdout == "3"


def test_values_do_not_change_afterwards():
    config = parse_config(values())
    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 3


# --- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_reach_every_depth(tmp_path):
    path = write(tmp_path, yaml.safe_dump({**values(), "evaluate": None}))
    config = load_config(
        path,
        [
            "train.epochs=7",
            "train.schedule.milestones=[3, 5.5]",
            "train.learning_rate=1e-3",
            "model.insert.res3=selfy",
            "model.insert.res4.selfy.window=[5, 3]",
            "evaluate.every=2",
            "train.clip_norm=null",
            "data.holdout=scene=1",
            "train.epochs=8",
        ],
    )
    assert config.train.epochs == 8
    assert config.train.schedule.milestones == (3.0, 5.5)
    assert config.train.learning_rate == 1e-3
    assert config.model.insert["res3"].selfy.window == (9, 9)
    assert config.model.insert["res4"].selfy.window == (5, 3)
    assert config.evaluate.every == 2
    assert config.train.clip_norm is None
    assert config.data.holdout == "scene=1"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.epochs", "must read key.path=value"),
        ("=3", "must read key.path=value"),
        ("train..epochs=3", "must read key.path=value"),
        ("--train.epochs=3", "must read key.path=value"),
        ("train.schedule.milestones=[3, 5", "the value of train.schedule.milestones is not valid YAML"),
        ("data.root.folder=x", "data.root.folder cannot be set: root holds 'clips', not a section"),
        ("train.epoch=3", "unknown key train.epoch. Did you mean epochs?"),
        ("train=3", "train: "),
        ("train.epochs=", "train.epochs: "),
    ],
)
def test_a_bad_override_is_explained(tmp_path, override, part):
    path = write(tmp_path, minimal_text())
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert part in str(caught.value)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_bare_name_is_looked_up_in_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs", minimal_text(), "my_own.yaml")
    assert load_config("my_own") == load_config("my_own.yaml") == load_config("configs/my_own.yaml")
    write(tmp_path, yaml.safe_dump(values(train={"epochs": 3})), "my_own.yaml")
    assert load_config("my_own").train.epochs == 3  # the file at hand comes first


def test_a_path_is_not_looked_up_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs", minimal_text(), "my_own.yaml")
    with pytest.raises(ConfigError):
        find_config("elsewhere/my_own.yaml")


def test_a_missing_file_is_answered_with_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    write(tmp_path / "configs", minimal_text(), "my_own.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config("my_onw")
    message = str(caught.value)
    assert "no config 'my_onw'" in message
    assert "Did you mean my_own.yaml?" in message
    assert "There are: " in message
    with pytest.raises(ConfigError, match="no config"):
        load_config(tmp_path)  # a folder


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + minimal_text().encode(),
        minimal_text().replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + minimal_text().replace("\n", "\r\n").encode(),
        b"---\n" + minimal_text().encode() + b"...\n",
    ],
    ids=["bom", "crlf", "both", "marks"],
)
def test_what_editors_write_is_read(tmp_path, content):
    assert load_config(write(tmp_path, content)) == parse_config(values())


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"data:\n  root: caf\xe9\n", "cannot be read"),
        ("data: {}\n".encode("utf-16"), "cannot be read"),
        (b"data: [1, 2\n", "is not valid YAML"),
        (b"data:\n\tformat: clips\n", "is not valid YAML"),
        (b"data: \x00\n", "is not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "is not valid YAML"),
        (b"data: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        (b"", "must hold the sections data, model, train, evaluate. Received: NoneType"),
        (b"- data\n", "Received: list"),
        (b"1: 2\n", "data is missing"),
    ],
)
def test_a_damaged_file_is_explained(tmp_path, content, part):
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert part in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_key_given_twice_is_refused(tmp_path):
    path = write(tmp_path, minimal_text() + "train:\n  epochs: 3\n  batch_size: 4\n  epochs: 30\n")
    with pytest.raises(ConfigError, match="epochs"):
        load_config(path)


def test_what_is_written_reads_back_equal(tmp_path):
    given = {
        "data": {**DATA, "root": "données/クリップ", "holdout": "01", "resize": 64, "crop": 48, "scales": [1, 0.5]},
        "model": {"insert": {"res3": {"selfy": {"temporal_offsets": [0], "window": [5, 7]}}, "pool1": "selfy"}},
        "train": {"clip_norm": None, "weight_decay": 1e-7, "schedule": {"milestones": [1, 2.5]}, "devices": ["GPU:0"]},
        "evaluate": {"every": 3},
    }
    config = parse_config(given)
    text = dump_config(config)
    assert load_config(write(tmp_path, text)) == config
    assert dump_config(load_config(tmp_path / "some.yaml")) == text
    assert "クリップ" in text


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_config_loads(path):
    assert load_config(path.name) == load_config(path)


# --- the schema itself ------------------------------------------------------------------------------------------------


def test_every_key_is_read_somewhere():
    keys = [key for key, _, _ in list_keys()]
    assert {"train.schedule.gamma", "model.insert.STAGE.selfy.window", "data.root", "model.stm.per_stage"} <= set(keys)
    package = REPOSITORY / "keras_stss"
    sources = {path: path.read_text() for path in package.rglob("*.py") if path.parent.name != "config"}
    everything = "\n".join(sources.values())
    dead = []
    for key in keys:
        name = key.rpartition(".")[2]
        if "STAGE" in key or key.startswith(
            ("model.stm.", "data.augment.color_jitter.", "train.rates.", "train.decays.")
        ):
            continue  # handed on together: to a block, see the test below, to color_jitter, to the groups of weights
        used = re.search(rf"\.{name}\b", everything)
        if key.startswith("data."):  # the annotation files are looked up by name
            texts = [text for path, text in sources.items() if path.parent.name == "annotations"]
            used = used or any(f'"{name}"' in text for text in texts)
        if not used:
            dead.append(key)
    assert not dead


@pytest.mark.parametrize("block", BLOCKS)
def test_options_of_a_block_are_the_arguments_of_its_class(block):
    """All of them, by the same names and with the same defaults."""
    from keras_stss.models.build import BLOCK_CLASSES

    arguments = inspect.signature(BLOCK_CLASSES[block].__init__).parameters.values()
    defaults = {each.name: each.default for each in arguments if each.name not in ("self", "kwargs")}
    for name in ("filters", "strides", "bottleneck") if block == "stm" else ():
        del defaults[name]  # the shape of a residual block; among others a block keeps its input's
    defaults.pop("causal", None)  # of the whole network, model.causal
    config = parse_config(values(model={"insert": {"res3": block}}))
    assert getattr(config.model.insert["res3"], block).model_dump() == defaults


def test_the_schema_needs_neither_keras_nor_tensorflow():
    code = (
        "import sys; from keras_stss.config import load_config, ConfigError\n"
        "import keras_stss.cli\n"
        "print([name for name in ('keras', 'tensorflow', 'torch', 'jax', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["7", "01", "010", "1_0", "on", "7.5", "2020-01-01", "1e3"])
def test_a_group_is_called_what_it_is_called(tmp_path, name):
    """YAML 1.1 would make 010 the number 8, and hold out another group without a word."""
    path = tmp_path / "a.yaml"
    path.write_text("data: {format: clips, root: x, annotations: c.csv}\n")
    assert load_config(path, [f"data.holdout={name}"]).data.holdout == name
    if name not in ("7.5", "1e3"):  # numbers in the file itself; on the command line they are text
        path.write_text(f"data: {{format: clips, root: x, annotations: c.csv, holdout: {name}}}\n")
        assert load_config(path).data.holdout == name


def test_small_numbers_as_people_write_them(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("data: {format: something_v2, root: x}\ntrain: {weight_decay: 1e-4}\n")
    assert load_config(path, ["train.learning_rate=2e-3"]).train.learning_rate == 2e-3
    assert load_config(path).train.weight_decay == 1e-4
