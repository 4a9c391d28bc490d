"""The files of a run: checkpoints, figures and the best model, on disks that fill up and bytes that change."""

import contextlib
import errno
import io
import json
import os
import resource
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from keras_stss.cli import main
from keras_stss.config import ConfigError, dump_config, load_config, parse_config
from keras_stss.training.saving import checkpoint, files
from keras_stss.training.saving.checkpoint import CheckpointError, Checkpoints
from keras_stss.training.saving.files import DiskFull
from keras_stss.training.saving.run import FREE_KEYS, Run, is_better

LABELS = ["left", "right"]


def make(folder, keep=3, value=0.0):
    return Checkpoints(folder, [tf.Variable(tf.fill([3, 2], value)), tf.Variable(7)], keep)


def save_two(folder):
    """Checkpoints 1 and 2 of the values 1 and 2; the newest one's path."""
    make(folder, value=1.0).save(1, {"step": 1})
    return make(folder, value=2.0).save(2, {"step": 2})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- the checkpoint file ----------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_whole(tmp_path):
    saved = make(tmp_path, value=1.5)
    saved.variables[1].assign(-3)
    path = saved.save(12, {"step": 12, "best": {"top1": 0.1 + 0.2}, "none": None})
    fresh = make(tmp_path)
    assert fresh.restore() == {"step": 12, "best": {"top1": 0.1 + 0.2}, "none": None}
    assert np.array_equal(fresh.variables[0].numpy(), np.full((3, 2), 1.5, np.float32))
    assert int(fresh.variables[1]) == -3
    with np.load(path) as plain:  # … and NumPy alone reads it
        assert np.array_equal(plain["0000"], fresh.variables[0].numpy())


def test_no_checkpoint_is_none(tmp_path):
    assert make(tmp_path / "new").restore() is None


def test_the_newest_are_kept(tmp_path):
    checkpoints = make(tmp_path, keep=2)
    for step in (5, 50, 999, 1000, 99_999_999, 100_000_000):
        checkpoints.save(step, {"step": step})
    assert [path.name for path in checkpoints.files()] == ["step-99999999.npz", "step-100000000.npz"]


def test_a_checkpoint_of_an_earlier_version_comes_back(tmp_path):
    """It has no SHA-256; a changed byte in it is found by the CRC-32 of its arrays."""
    arrays = {"0000": np.full((3, 2), 4, np.float32), "0001": np.int32(5)}
    progress = np.frombuffer(json.dumps({"step": 9}).encode(), np.uint8)
    np.savez(tmp_path / "step-00000009.npz", progress=progress, **arrays)
    fresh = make(tmp_path)
    assert fresh.restore() == {"step": 9}
    assert np.array_equal(fresh.variables[0], arrays["0000"]) and int(fresh.variables[1]) == 5
    content = (tmp_path / "step-00000009.npz").read_bytes()
    place = content.index(arrays["0000"].tobytes())
    (tmp_path / "step-00000009.npz").write_bytes(content[:place] + b"\1" + content[place + 1 :])
    with pytest.raises(CheckpointError, match="CRC"):
        make(tmp_path).restore()


def test_any_damage_is_noticed(tmp_path):
    """Cut anywhere, longer, or with a byte changed anywhere: the older file is taken, never other values."""
    path = save_two(tmp_path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    changed = [(place, whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]) for place in
               [*rng.choice(len(whole) - 100, 80, replace=False), *range(len(whole) - 100, len(whole))]]  # fmt: skip
    cut = [(place, whole[:place]) for place in [0, *rng.integers(1, len(whole), 40), len(whole) - 71, len(whole) - 1]]
    for place, content in [*changed, *cut, (-1, whole + b"\0"), (-2, whole + whole)]:
        path.write_bytes(content)
        fresh = make(tmp_path)
        assert fresh.restore() == {"step": 1}, place
        assert np.all(fresh.variables[0].numpy() == 1), place


def other_files():
    archive, array, pickled = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("progress.npy", "no array")
    np.save(array, np.zeros(3))
    np.savez(pickled, progress=np.array([{"step": 2}], object))
    kinds = {"empty": b"", "archive": archive, "array": array, "pickle": pickled, "text": b"step: 2\n" * 20}
    return {name: content if isinstance(content, bytes) else content.getvalue() for name, content in kinds.items()}


@pytest.mark.parametrize("kind", other_files())
def test_another_kind_of_file_is_set_aside(tmp_path, caplog, kind):
    path = save_two(tmp_path)
    path.write_bytes(other_files()[kind])
    assert make(tmp_path).restore() == {"step": 1}
    assert names(tmp_path) == ["step-00000001.npz", "step-00000002.damaged"]
    assert (tmp_path / "step-00000002.damaged").read_bytes() == other_files()[kind]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{path} cannot be restored: ") and message.endswith("step-00000001.npz")


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ([tf.Variable(tf.zeros([2, 3])), tf.Variable(7)], r"float32 \(2, 3\), wanted is float32 \(3, 2\)"),
        ([tf.Variable(tf.zeros([3, 2], tf.float64)), tf.Variable(7)], "is float64"),
        ([tf.Variable(tf.zeros([3, 2])), tf.Variable([7])], r"array 0001 is int32 \(1,\)"),
        ([tf.Variable(tf.zeros([3, 2]))], "holds 2 arrays, wanted are 3"),
        ([tf.Variable(tf.zeros([3, 2])), tf.Variable(7), tf.Variable(8)], "holds 4 arrays, wanted are 3"),
    ],
)
def test_what_does_not_fit_changes_nothing(tmp_path, variables, reason):
    """Whole files of another model: nothing is half restored, none is set aside, and the message says what differs."""
    for step in (1, 2):
        Checkpoints(tmp_path, variables, 3).save(step, {"step": step})
    fresh = make(tmp_path, value=0.5)
    with pytest.raises(CheckpointError, match=f"step-00000002.npz: .*{reason}.*step-00000001.npz: .*train.run="):
        fresh.restore()
    assert np.all(fresh.variables[0].numpy() == 0.5)
    assert names(tmp_path) == ["step-00000001.npz", "step-00000002.npz"]


def test_checkpoints_written_after_a_damaged_one_survive(tmp_path):
    """With the damaged file still there, the newest by name, the good ones would be the ones to go."""
    make(tmp_path).save(1, {"step": 1})
    make(tmp_path).save(20, {"step": 20})
    (tmp_path / "step-00000020.npz").write_bytes(b"damaged")
    checkpoints = make(tmp_path, keep=1)
    assert checkpoints.restore() == {"step": 1}
    checkpoints.save(5, {"step": 5})
    assert make(tmp_path, keep=1).restore() == {"step": 5}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_not_saved(tmp_path, value):
    path = save_two(tmp_path)
    checkpoints = make(tmp_path, keep=1)
    checkpoints.variables[0][2, 1].assign(value)
    with pytest.raises(CheckpointError, match=f"not finite.*it goes on from {path}$"):
        checkpoints.save(3, {"step": 3})
    assert names(tmp_path) == ["step-00000001.npz", "step-00000002.npz"]
    assert make(tmp_path).restore() == {"step": 2}


# --- a full disk ------------------------------------------------------------------------------------------------------


class Disk:
    """A disk with room for so many bytes; the write that goes over it is cut short, as the system does."""

    def __init__(self, room, code):
        self.room, self.code = room, code

    def open(self, path, mode):
        disk = self

        class File(io.FileIO):
            def write(self, data):
                if disk.room <= 0:
                    raise OSError(disk.code, os.strerror(disk.code))
                written = super().write(memoryview(data)[: disk.room])
                disk.room -= written
                return written

        return io.BufferedWriter(File(path, mode.replace("b", "")), 64)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_any_byte_leaves_the_earlier_files(tmp_path, monkeypatch, code):
    path = save_two(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    size = path.stat().st_size
    checkpoints = make(tmp_path, keep=1, value=3.0)
    for room in [0, 1, size - 65, size - 1, *np.random.default_rng(code).integers(2, size, 20)]:
        monkeypatch.setattr(checkpoint, "open", Disk(room, code).open, raising=False)
        with pytest.raises(DiskFull) as caught:
            checkpoints.save(3, {"step": 3})
        message = str(caught.value)
        assert os.strerror(code) in message and "step-00000003.npz" in message, room
        assert message.endswith(f"give the same command again: it goes on from {path}") and "\n" not in message
        assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before, room
    monkeypatch.setattr(checkpoint, "open", Disk(size + 65, code).open, raising=False)
    checkpoints.save(3, {"step": 3})
    monkeypatch.undo()
    assert make(tmp_path).restore() == {"step": 3}


@pytest.mark.parametrize("place", ["_sync", "replace"])
def test_a_disk_that_is_full_when_the_file_is_closed(tmp_path, monkeypatch, place):
    """Network file systems say so only then."""
    path = save_two(tmp_path)

    def full(*_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(files if place == "_sync" else files.os, place, full)
    with pytest.raises(DiskFull, match="quota"):
        make(tmp_path).save(3, {"step": 3})
    monkeypatch.undo()
    assert names(tmp_path) == ["step-00000001.npz", path.name]


@contextlib.contextmanager
def small_files(limit):
    """The system lets no file of this process grow beyond `limit` bytes.

    Not a fixture: the test's own report may go to a file, and pytest writes it before a fixture ends.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_every_file_of_a_run_survives_a_full_disk(tmp_path):
    """By the system's own limit: figures, scores, best model and checkpoint stay as they were, each by one line."""
    import keras

    run = Run(tmp_path)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(500)])
    checkpoints = Checkpoints(tmp_path, model.variables, 1)
    run.add_row({"epoch": 1})
    run.save_best(model)
    run.save_scores({"logits": np.ones(4)})
    checkpoints.save(1, {"step": 1})
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    for write in (
        lambda: run.add_row({"epoch": 2, "text": "x" * 2000}),
        lambda: run.save_best(model),
        lambda: run.save_scores({"logits": np.ones(4000)}),
        lambda: checkpoints.save(2, {"step": 2}),
    ):
        with small_files(1500), pytest.raises(DiskFull, match="cannot be written: File too large"):
            write()
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


# --- the figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", ['{"epoch": 3, "train_lo', "\0" * 40, "\xff{"])
def test_a_torn_last_line_is_repaired(tmp_path, caplog, torn):
    run = Run(tmp_path)
    run.add_row({"epoch": 1})
    run.add_row({"epoch": 2})
    whole = run.metrics.read_text()
    run.metrics.write_bytes(whole.encode() + torn.encode("latin-1"))
    assert [row["epoch"] for row in run.rows()] == [1, 2]
    assert "the last line is torn" in caplog.text
    run.keep_rows(2)
    assert run.metrics.read_text() == whole
    run.metrics.write_text(torn[:9] + "\n" + whole)
    with pytest.raises(ConfigError, match="line 1"):
        run.rows()


def test_a_best_model_of_a_line_that_is_dropped_is_told(tmp_path, caplog):
    run = Run(tmp_path)
    for epoch, best in ((1, 1), (2, 1), (3, 3)):
        run.add_row({"epoch": epoch, "best_epoch": best})
    run.keep_rows(3)
    assert not caplog.text
    run.keep_rows(2)
    assert "best.keras is of epoch 3, which is trained again; it stays until" in caplog.text
    assert [row["epoch"] for row in run.rows()] == [1, 2]


def test_the_best_of_a_metric():
    assert is_better("top1", 0.0, None) and is_better("loss", 9.0, None) and is_better("loss", float("nan"), None)
    for metric in ("top1", "top5", "mean_class"):
        assert is_better(metric, 0.6, 0.5)
        assert not is_better(metric, 0.5, 0.5) and not is_better(metric, 0.4, 0.5)
    assert is_better("loss", 0.4, 0.5) and not is_better("loss", 0.5, 0.5) and not is_better("loss", 0.6, 0.5)
    for metric in ("top1", "loss"):
        assert not is_better(metric, float("nan"), 0.5) and is_better(metric, 0.5, float("nan"))
        assert not is_better(metric, float("nan"), float("nan"))


# --- opening a folder again -------------------------------------------------------------------------------------------


def config_of(*overrides, **sections):
    data = {"format": "clips", "root": "/set", "annotations": "clips.csv", "workers": 2}
    return parse_config({"data": data, **sections}, "test", overrides)


def begin(folder, config):
    """A run with one checkpoint."""
    run = Run(folder)
    run.open(config, LABELS)
    make(run.checkpoints).save(1, {"step": 1})
    return run


def test_a_run_is_resumed_or_not_as_the_config_says(tmp_path):
    run = begin(tmp_path / "run", config_of())
    run.open(config_of(), LABELS)
    with pytest.raises(ConfigError, match=r"holds a run already, and train.resume is never.*train.run="):
        run.open(config_of("train.resume=never"), LABELS)
    run.open(config_of("train.resume=never"), LABELS, resume="auto")  # a worker that is started again
    with pytest.raises(ConfigError, match="other class labels"):
        run.open(config_of(), ["left", "up"])
    Run(tmp_path / "new").open(config_of("train.resume=never"), LABELS)
    Run(tmp_path / "new").open(config_of("train.resume=never", "train.epochs=3"), LABELS)  # nothing was trained yet


def test_keys_that_an_older_run_does_not_know_have_their_defaults(tmp_path):
    run = begin(tmp_path, config_of())
    values = config_of().model_dump(mode="json")
    for section, key in (("train", "ema"), ("train", "board"), ("train", "rates"), ("data", "augment")):
        del values[section][key]
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    run.open(config_of(), LABELS)
    with pytest.raises(ConfigError, match=r"other settings(.|\n)*train.ema: None there, 0.9 now"):
        run.open(config_of("train.ema=0.9"), LABELS)


def test_what_does_not_change_the_computation_may_change(tmp_path, caplog):
    run = begin(tmp_path, config_of())
    free = ["train.restarts=9", "train.cluster=slurm", "train.board.clips=0", "train.board.profile=[2,3]"]
    free += ["data.workers=7", "data.root=/moved", "train.keep_checkpoints=1", "evaluate.batch_size=2"]
    assert all(any(item.startswith(key) for key in FREE_KEYS) for item in free)
    before = (tmp_path / "config.yaml").read_text()
    run.open(config_of(*free), LABELS)
    assert not caplog.records
    run.open(config_of(*free, "train.strategy=mirrored", "train.logical_cpus=2"), LABELS)
    assert "train.strategy: 'auto' there, 'mirrored' now" in caplog.text
    assert (tmp_path / "config.yaml").read_text() == before == dump_config(config_of())
    with pytest.raises(ConfigError) as caught:
        run.open(config_of(*free, "train.best=loss", "train.xla=true", "data.frames=4"), LABELS)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["data.frames", "train.best"]


def test_a_run_without_its_checkpoints_does_not_begin_anew(tmp_path):
    run = begin(tmp_path, config_of())
    run.add_row({"epoch": 1})
    (path,) = run.checkpoints.iterdir()
    path.rename(path.with_suffix(".damaged"))
    with pytest.raises(ConfigError, match=r"a run of 1 epochs but no checkpoint.*train.run="):
        run.open(config_of(), LABELS)
    path.with_suffix(".damaged").unlink()
    with pytest.raises(ConfigError, match="no checkpoint to go on from"):
        run.open(config_of(), LABELS)
    assert run.rows() == [{"epoch": 1}]


def test_what_a_killed_process_left_is_removed(tmp_path):
    run = begin(tmp_path, config_of())
    for name in ("unfinished-best.keras", "unfinished.keras", "metrics.jsonl.tmp", "checkpoints/unfinished-step-2.npz"):
        (tmp_path / name).write_bytes(b"half")
    with run.claimed():
        make(run.checkpoints).restore()
    assert names(tmp_path) == ["checkpoints", "config.yaml", "labels.json"]
    assert names(run.checkpoints) == ["step-00000001.npz"]


def test_a_run_begins_where_there_was_no_room_for_it_before(tmp_path):
    """Or where it was killed in its first moments."""
    for limit in (0, 200):  # too small for any file; for config.yaml alone
        with small_files(limit), pytest.raises(DiskFull, match=r"config.yaml cannot be written"):
            Run(tmp_path / "run").open(config_of(), LABELS)
    (tmp_path / "run" / "unfinished-config.yaml").write_text("data:")
    Run(tmp_path / "run").open(config_of(), LABELS)
    (tmp_path / "run" / "labels.json").unlink()
    Run(tmp_path / "run").open(config_of(), LABELS)
    assert Run(tmp_path / "run").labels() == LABELS


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    run = begin(tmp_path, config_of())
    another = pytest.raises(ConfigError, match=r"another process is training in .*train.run=")
    with run.claimed():
        (tmp_path / "unfinished-best.keras").write_bytes(b"half")
        with another, Run(tmp_path).claimed():
            pass
        assert (tmp_path / "unfinished-best.keras").is_file()  # of the process that is at work
    with run.claimed():
        pass


def test_who_comes_second_changes_nothing(recipe, tmp_path, capsys):
    """Not even where the first one has no checkpoint yet."""
    run = Run(tmp_path / "run")
    with run.claimed():
        run.open(load_config(recipe()), LABELS)
        before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
        assert main(["train", "--config", str(recipe()), "train.learning_rate=0.5"]) == 2
        assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before
    assert "another process is training" in capsys.readouterr().err


def test_a_folder_of_somebody_else_stays_as_it_is(tmp_path):
    (tmp_path / "letter.tmp").write_text("mine")
    run = Run(tmp_path)
    (tmp_path / "letter").write_text("mine, too")
    with run.claimed(), pytest.raises(ConfigError, match=r"train.run="):
        run.open(config_of(), LABELS)
    assert names(tmp_path) == ["letter", "letter.tmp"]
    with pytest.raises(ConfigError, match=r"a file.*train.run="), Run(tmp_path / "letter").claimed():
        pass
