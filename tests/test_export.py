"""The exported SavedModel: loaded without this package and without Keras, and served to the C client."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_stss.cli import main
from keras_stss.config import ConfigError, dump_config, parse_config
from keras_stss.data.augment import center_view
from keras_stss.export import export_run, saved_model
from keras_stss.export.graph import save_functions
from keras_stss.export.saved_model import ExportError
from keras_stss.models.build import build_model, load_model

FRAMES, RESIZE, CROP = 4, (72, 96), 64
LABELS = ["Pushing something from left to right", "Öffnen", "打开", "d", "", "f", "g"]
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "serving"
PIXELS = np.random.default_rng(0)

# Runs apart, with the import of Keras forbidden: argv is a SavedModel, a file of inputs and a file for the outputs.
LOADER = """
import sys
sys.modules["keras"] = None
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

signatures = tf.saved_model.load(sys.argv[1]).signatures
inputs, outputs = np.load(sys.argv[2]), {}
for name in inputs.files:
    for key, value in signatures["serving_default"](frames=tf.constant(inputs[name])).items():
        value = value.numpy()
        outputs[f"{name}_{key}"] = np.char.decode(value.astype("S"), "utf-8") if key == "labels" else value
np.savez(sys.argv[3], **outputs)
loaded = sorted(name for name in sys.modules if name.split(".")[0] in ("keras", "tf_keras", "keras_stss"))
assert loaded == ["keras"] and sys.modules["keras"] is None, loaded
unknown = [name for name in sys.argv[4].split(",") if op_def_registry.get(name) is None]
assert not unknown, unknown
"""


def make_run(folder, precision="float32", labels=LABELS, resize=RESIZE):
    """A run directory with a random model whose probabilities differ clearly between classes."""
    selfy = {"channels": 8, "window": [5, 5], "extraction_channels": [4, 8], "integration_channels": [8]}
    values = {
        "data": {
            "format": "clips",
            "root": ".",
            "annotations": "a.csv",
            "frames": FRAMES,
            "resize": resize,
            "crop": CROP,
        },
        "model": {"backbone": "resnet10", "width": 8, "insert": {"res3": {"selfy": selfy}}},
        "train": {"precision": precision},
    }
    config = parse_config(values)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    (folder / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    keras.utils.set_random_seed(1)
    model = build_model(config, len(LABELS))
    head = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)][-1]
    head.kernel.assign(head.kernel * 300.0)
    model.save(folder / "best.keras")
    return folder


def clips(batch, height, width, frames=FRAMES):
    """Coarse coloured blocks under noise: clips of noise alone all look the same to a network."""
    blocks = PIXELS.integers(0, 200, (batch, frames, height // 16 + 1, width // 16 + 1, 3), np.uint8)
    blocks = blocks.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
    return blocks + PIXELS.integers(0, 56, blocks.shape, np.uint8)


def keras_probabilities(model, frames, resize=RESIZE):
    views = tf.stack([center_view(tf.constant(clip), resize, CROP) for clip in frames])
    return tf.nn.softmax(tf.cast(model(views, training=False), tf.float32)).numpy()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def model(run_folder):
    return load_model(run_folder)


@pytest.fixture(scope="module")
def report(run_folder):
    return export_run(run_folder, run_folder.parent / "models" / "motion" / "1")


@pytest.fixture(scope="module")
def signatures(report):
    return tf.saved_model.load(report["folder"]).signatures


def test_report(report):
    assert json.loads(json.dumps(report)) == report
    assert report["max_difference"] < 1e-4
    assert report["tolerance"] == 1e-4
    assert report["precision"] == "float32"
    folder = Path(report["folder"])
    assert sorted(path.name for path in folder.parent.iterdir()) == ["1"]
    assert (folder / "saved_model.pb").stat().st_size < report["bytes"]
    outputs = {"probabilities": ("float32", [None, len(LABELS)]), "labels": ("string", [None, len(LABELS)])}
    expected = {
        "serving_default": {"inputs": {"frames": ("uint8", [None, FRAMES, None, None, 3])}, "outputs": outputs},
        "serving_jpeg": {"inputs": {"jpeg": ("string", [None, FRAMES])}, "outputs": outputs},
    }
    found = {
        name: {
            kind: {key: (tensor["dtype"], tensor["shape"]) for key, tensor in tensors.items()}
            for kind, tensors in signature.items()
        }
        for name, signature in report["signatures"].items()
    }
    assert found == expected


def test_loads_without_keras(report, model, tmp_path):
    sizes = [(1, CROP, CROP), (2, *RESIZE), (3, 50, 130), (1, 201, 150), (2, 1, 2)]
    inputs = {f"clips{number}": clips(*size) for number, size in enumerate(sizes)}
    np.savez(tmp_path / "inputs.npz", **inputs)
    command = [report["folder"], tmp_path / "inputs.npz", tmp_path / "outputs.npz", ",".join(report["operations"])]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", LOADER, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    outputs = np.load(tmp_path / "outputs.npz")
    for name, frames in inputs.items():
        expected = keras_probabilities(model, frames)
        np.testing.assert_allclose(outputs[f"{name}_probabilities"], expected, rtol=0, atol=1e-4)
        assert outputs[f"{name}_labels"].tolist() == [LABELS] * len(frames)
    # The comparison says something only where the classes differ, and the clips.
    assert np.ptp(outputs["clips2_probabilities"], axis=1).min() > 0.05
    assert np.ptp(outputs["clips2_probabilities"], axis=0).max() > 1e-3


def test_stock_operations_only(report):
    assert not {"PyFunc", "PyFuncStateless", "EagerPyFunc"}.intersection(report["operations"])
    assert {"Conv2D", "DecodeJpeg", "Softmax"}.issubset(report["operations"])


def test_jpeg_equals_frames(signatures):
    encoded = [[tf.io.encode_jpeg(frame).numpy() for frame in clip] for clip in clips(2, 80, 100)]
    decoded = [[tf.io.decode_jpeg(frame, dct_method="INTEGER_ACCURATE").numpy() for frame in clip] for clip in encoded]
    of_jpeg = signatures["serving_jpeg"](jpeg=tf.constant(encoded))
    of_frames = signatures["serving_default"](frames=tf.constant(np.array(decoded)))
    np.testing.assert_allclose(of_jpeg["probabilities"], of_frames["probabilities"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(of_jpeg["labels"], of_frames["labels"])


def test_jpeg_of_differing_sizes_and_gray(signatures, model):
    sizes = [(72, 96), (64, 64), (120, 70), (50, 51)]
    encoded = [tf.io.encode_jpeg(clips(1, *size)[0, 0]).numpy() for size in sizes[:3]]
    encoded.append(tf.io.encode_jpeg(clips(1, *sizes[3])[0, 0, :, :, :1]).numpy())
    frames = [tf.io.decode_jpeg(frame, channels=3, dct_method="INTEGER_ACCURATE") for frame in encoded]
    views = tf.concat([center_view(frame[None], RESIZE, CROP) for frame in frames], 0)
    expected = keras_probabilities(model, views[None].numpy())
    probabilities = signatures["serving_jpeg"](jpeg=tf.constant([encoded]))["probabilities"]
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-4)


def test_empty_batch(signatures):
    for frames in (clips(0, CROP, CROP), clips(0, 50, 60)):
        outputs = signatures["serving_default"](frames=tf.constant(frames))
        assert {tuple(value.shape) for value in outputs.values()} == {(0, len(LABELS))}
    outputs = signatures["serving_jpeg"](jpeg=tf.zeros((0, FRAMES), tf.string))
    assert {tuple(value.shape) for value in outputs.values()} == {(0, len(LABELS))}


@pytest.mark.parametrize("shape", [(1, 5, 64, 64, 3), (4, 64, 64, 3), (1, 4, 64, 64, 4), (1, 4, 0, 64, 3), (1, 4), ()])
def test_wrong_frames_are_named(signatures, shape):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        signatures["serving_default"](frames=tf.zeros(shape, tf.uint8))
    received = ", ".join(str(side) for side in shape)
    assert f"frames must have shape (batch, {FRAMES}, height, width, 3)" in str(caught.value)
    assert f"Received: shape=({received})" in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 3), (4,), (), (1, 4, 1)])
def test_wrong_jpeg_shapes_are_named(signatures, shape):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        signatures["serving_jpeg"](jpeg=tf.fill(shape, b"\xff\xd8\xff"))
    assert f"jpeg must have shape (batch, {FRAMES})" in str(caught.value)


def test_broken_jpeg_is_named(signatures):
    good = tf.io.encode_jpeg(clips(1, 50, 60)[0, 0]).numpy()
    for bad in (b"", b"no picture", tf.io.encode_png(clips(1, 50, 60)[0, 0]).numpy()):
        with pytest.raises(tf.errors.InvalidArgumentError, match="jpeg must hold encoded JPEG files") as caught:
            signatures["serving_jpeg"](jpeg=tf.constant([[good] * 4, [good, good, bad, good]]))
        assert "[[1 2]]" in str(caught.value)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Invalid JPEG data"):
        signatures["serving_jpeg"](jpeg=tf.constant([[good, good, good, good[: len(good) // 2]]]))


def test_wrong_dtypes_are_named(signatures):
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected to be a uint8 tensor but is a float tensor"):
        signatures["serving_default"](frames=tf.zeros((1, 4, 64, 64, 3)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected to be a string tensor but is a uint8 tensor"):
        signatures["serving_jpeg"](jpeg=tf.zeros((1, 4), tf.uint8))


@pytest.fixture
def saved_already(report, monkeypatch):
    """For tests of what happens round the saving, which takes its seconds."""
    monkeypatch.setattr(saved_model, "_save", lambda *arguments: shutil.copytree(report["folder"], arguments[-1]))
    monkeypatch.setattr(saved_model, "_largest_difference", lambda *_: 0.0)


def test_existing_folders(run_folder, tmp_path, saved_already):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    for force in (False, True):
        with pytest.raises(ConfigError, match="mine"):
            export_run(run_folder, mine, force)
        with pytest.raises(ConfigError, match="no folder"):
            export_run(run_folder, mine / "notes.txt", force)
    with pytest.raises(ConfigError, match="cannot be made"):
        export_run(run_folder, mine / "notes.txt" / "1")
    assert (mine / "notes.txt").read_text() == "keep"

    version = tmp_path / "1"
    version.mkdir()
    export_run(run_folder, version)  # an empty folder may be there
    (version / "stale").write_text("")
    with pytest.raises(ConfigError, match="not empty"):
        export_run(run_folder, version)
    assert (version / "stale").exists()
    export_run(run_folder, version, force=True)
    assert not (version / "stale").exists()
    assert (version / "saved_model.pb").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "mine"]


def test_nothing_is_written_where_the_numbers_differ(run_folder, tmp_path, saved_already, monkeypatch):
    for difference in (1e-3, float("inf"), float("nan")):
        monkeypatch.setattr(saved_model, "_largest_difference", lambda *_, value=difference: value)
        with pytest.raises(ExportError, match="differs from the Keras model"):
            export_run(run_folder, tmp_path / "models" / "1")
        assert main(["export", str(run_folder), str(tmp_path / "models" / "1")]) == 2  # a line, and no traceback
        assert not list((tmp_path / "models").iterdir())


def test_no_run(tmp_path):
    with pytest.raises(ConfigError, match="not a run directory"):
        export_run(tmp_path, tmp_path / "1")
    run = make_run(tmp_path / "run", labels=LABELS[:3])
    with pytest.raises(ConfigError, match=r"3 labels, but best\.keras gives 7 classes"):
        export_run(run, tmp_path / "1")
    (run / "best.keras").unlink()
    with pytest.raises(ConfigError, match=r"best\.keras"):
        export_run(run, tmp_path / "1")


def test_a_disk_that_takes_no_more(tmp_path):
    """Writing ends with a line, not with TensorFlow's traceback, and leaves nothing."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is not a directory"):
        save_functions({}, [tf.Variable(1.0)], tmp_path / "file" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_weights_that_are_no_numbers(tmp_path):
    run = make_run(tmp_path / "run")
    spoilt = load_model(run)
    spoilt.get_layer("logits").bias.assign(np.full(len(LABELS), np.nan))
    spoilt.save(run / "best.keras")
    with pytest.raises(ConfigError, match=r"logits/bias of best\.keras holds what is no number"):
        export_run(run, tmp_path / "1")


def test_mixed_precision_and_short_side(tmp_path):
    run = make_run(tmp_path / "run", "mixed_float16", resize=70)
    report = export_run(run, tmp_path / "1")
    assert report["precision"] == "mixed_float16"
    assert report["max_difference"] < report["tolerance"] < 0.1
    frames = clips(2, 90, 60)
    served = tf.saved_model.load(report["folder"]).signatures["serving_default"](frames=tf.constant(frames))
    expected = keras_probabilities(load_model(run), frames, resize=70)
    np.testing.assert_allclose(served["probabilities"], expected, rtol=0, atol=report["tolerance"])


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    if not (shutil.which("cc") and shutil.which("make")):
        pytest.skip("no C compiler (cc and make) on this machine")
    folder = tmp_path_factory.mktemp("serving")
    for name in ("client.c", "Makefile"):
        shutil.copy(EXAMPLE / name, folder)
    made = subprocess.run(
        ["make", f"PYTHON={sys.executable}", "CFLAGS=-O1 -Wall -Wextra -Werror"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return folder / "client"


def run_client(client, *arguments):
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    return subprocess.run([client, *map(str, arguments)], env=environment, capture_output=True, encoding="utf-8")


def assert_prints_top(run, probabilities):
    assert run.returncode == 0, run.stderr
    order = np.argsort(-probabilities, kind="stable")[:5]
    lines = [line.split("\t") for line in run.stdout.splitlines()]
    assert [label for _, label in lines] == [LABELS[index] for index in order]
    np.testing.assert_allclose([float(text) for text, _ in lines], probabilities[order], rtol=0, atol=2e-6)


def test_c_client(client, report, signatures, tmp_path):
    frames = clips(1, 90, 70)
    (tmp_path / "clip.raw").write_bytes(frames.tobytes())
    expected = signatures["serving_default"](frames=tf.constant(frames))["probabilities"].numpy()[0]
    assert_prints_top(run_client(client, report["folder"], tmp_path / "clip.raw", FRAMES, 90, 70), expected)

    paths = [tmp_path / f"{number}.jpg" for number in range(FRAMES)]
    for path, frame in zip(paths, frames[0], strict=True):
        path.write_bytes(tf.io.encode_jpeg(frame).numpy())
    encoded = tf.constant([[path.read_bytes() for path in paths]])
    expected = signatures["serving_jpeg"](jpeg=encoded)["probabilities"].numpy()[0]
    assert_prints_top(run_client(client, report["folder"], "--jpeg", *paths), expected)


def test_c_client_errors(client, report, tmp_path):
    raw = tmp_path / "clip.raw"
    raw.write_bytes(clips(1, 30, 40, frames=5).tobytes())
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    folder = report["folder"]
    cases = [
        (1, "Received: shape=(1, 5, 30, 40, 3)", [folder, raw, 5, 30, 40]),
        (1, "bytes. Received: 18000", [folder, raw, 4, 30, 40]),
        (1, "must be numbers", [folder, raw, 5, 30, "4o"]),
        (1, "jpeg must have shape (batch, 4)", [folder, "--jpeg", text]),
        (1, "jpeg must hold encoded JPEG files", [folder, "--jpeg", text, text, text, text]),
        (1, "No such file", [folder, tmp_path / "none.raw", 5, 30, 40]),
        (1, "cannot be loaded", [tmp_path, raw, 5, 30, 40]),
        (2, "usage:", [folder]),
    ]
    for code, message, arguments in cases:
        run = run_client(client, *arguments)
        assert (run.returncode, run.stdout) == (code, ""), (arguments, run.stderr)
        assert message in run.stderr, arguments
