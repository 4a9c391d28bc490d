"""Exports beside SavedModel: folded, converted, checked, and run by their own runtimes without this package."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_export import CROP, FRAMES, LABELS, make_run

from keras_stss.cli import main
from keras_stss.config import ConfigError
from keras_stss.export import FORMATS, doors, export_doors, export_run, fold_batch_norm
from keras_stss.export.check import Difference, compare, make_case, time_in_turns
from keras_stss.layers.batch_norm import BatchNorm
from keras_stss.models import build_model, load_model
from keras_stss.ops import native_status, portable

HERE = [name for name in FORMATS if doors.lacking(name) is None]
SELFY = {"channels": 4, "window": [3, 3], "extraction_channels": [4, 8], "integration_channels": [8, 8]}
PARTS = {
    "resnet": {"insert": {"res3": {"stcb": {}, "non_local": {}}}},
    "bottleneck": {"backbone": "resnet50", "temporal": "stm"},
    "mobilenet": {"backbone": "mobilenet_v2", "insert": {"stage4": {"motion_squeeze": {"window": [3, 3]}}}},
    "i3d": {"backbone": "i3d", "temporal": "3d"},
    "selfy": {"insert": {"res3": {"selfy": SELFY}, "res4": {"selfy": {**SELFY, "variant": "released"}}}},
    "others": {"insert": {"res3": ["cp", "correlation", "local_attention"]}},
}

# Runs apart, where neither Keras nor this package can be imported: argv is an export's folder, clips, a file for the
# probabilities. What has no runtime here is not among the files of the folder.
CLIENT = """
import sys
sys.modules["keras"] = sys.modules["keras_stss"] = None
import json
from pathlib import Path
import numpy as np

folder, clips, found = Path(sys.argv[1]), np.load(sys.argv[2]), {}
files = {path.name: str(path) for path in folder.iterdir()}
labels = json.loads(Path(files["labels.json"]).read_text())
if "model.onnx" in files:
    import onnxruntime
    session = onnxruntime.InferenceSession(files["model.onnx"], providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == labels
    found["onnx"] = [session.run(None, {"frames": clip[None]})[0] for clip in clips]
if "model.xml" in files:
    import openvino
    model = openvino.Core().read_model(files["model.xml"])
    assert json.loads(model.get_rt_info("labels").astype(str)) == labels
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found["openvino"] = [compiled({"frames": clip[None]})["probabilities"] for clip in clips]
try:
    from ai_edge_litert import interpreter
except ImportError:
    import tensorflow
    interpreter = tensorflow.lite
for name in ("model", "model-int8"):
    signature = interpreter.Interpreter(files[name + ".tflite"]).get_signature_runner("serving_default")
    found[name] = [signature(frames=clip[None])["probabilities"] for clip in clips]
np.savez(sys.argv[3], **{name: np.concatenate(each) for name, each in found.items()})
"""

# A signal, after what OpenVINO compiled was let go of in another thread.
SIGNALLED = """
import gc, os, signal, sys, threading
import numpy, openvino
from openvino import opset13
from keras_stss.export.openvino import load

put_in = opset13.parameter([1, 2], numpy.float32)
openvino.save_model(openvino.Model([opset13.relu(put_in)], [put_in]), sys.argv[1])
held = [load(sys.argv[1], 1)]
thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))
thread.start()
thread.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""

NATIVE_CLIENT = """
import sys
sys.modules["keras"] = sys.modules["keras_stss"] = None
import numpy as np
import tensorflow as tf

try:
    tf.saved_model.load(sys.argv[1])
except Exception as error:
    assert "KerasStss>" in str(error), error
else:
    raise AssertionError("loaded without the library")
tf.load_op_library(sys.argv[1] + "/assets.extra/keras_stss_native.so")
signature = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
np.save(sys.argv[3], signature(frames=tf.constant(np.load(sys.argv[2])))["probabilities"])
"""


def learn_something(model):
    """Statistics, scales and shifts as after training, a scale of zero among them."""
    random = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            width = layer.beta.shape
            layer.moving_mean.assign(random.normal(0, 0.3, width))
            layer.moving_variance.assign(random.uniform(0.3, 2.0, width))
            layer.beta.assign(random.normal(0, 0.3, width))
            layer.gamma.assign(np.where(np.arange(width[0]) == 1, 0.0, random.uniform(-1.0, 1.5, width)))


def apart(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": ""}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def probabilities(model, clips):
    with portable():
        return tf.nn.softmax(tf.cast(model(clips, training=False), tf.float32)).numpy()


@pytest.mark.parametrize("part", PARTS)
def test_folding_keeps_the_outputs(part, tmp_path):
    """Of every backbone and block; the model itself stays as it was, and a file of the folded one computes the same."""
    sections = {"backbone": "resnet10", "width": 8, "insert": {}, **PARTS[part]}
    model = build_model("tsm_resnet18_8f", classes=5, pretrained=None, **sections)
    learn_something(model)
    clips = np.random.default_rng(1).integers(0, 256, (2, 4, 32, 40, 3), np.uint8)
    with portable():
        before, weights = model(clips, training=False).numpy(), model.get_weights()
        folded = fold_batch_norm(model)
        found = folded(clips, training=False).numpy()
        np.testing.assert_allclose(found, before, rtol=0, atol=2e-4 * np.abs(before).max())
        assert np.ptp(before) > 0
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert all(layer.folded for layer in folded._flatten_layers() if isinstance(layer, BatchNorm))
    assert not any(layer.folded for layer in model._flatten_layers() if isinstance(layer, BatchNorm))
    if part == "selfy":  # the native form of its convolutions takes the scale and shift itself
        np.testing.assert_allclose(folded(clips, training=False), before, rtol=0, atol=2e-4 * np.abs(before).max())
        folded.save(tmp_path / "folded.keras")
        again = keras.saving.load_model(tmp_path / "folded.keras")
        np.testing.assert_allclose(again(clips), before, rtol=0, atol=2e-4 * np.abs(before).max())


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("doors") / "run")


@pytest.fixture(scope="module")
def report(run_folder):
    return export_doors(run_folder, run_folder.parent / "export")


def test_table(report, run_folder):
    folder = Path(report["folder"])
    assert json.loads((folder / "export.json").read_text()) == json.loads(json.dumps(report))
    assert json.loads((folder / "labels.json").read_text()) == report["labels"] == LABELS
    assert (report["frames"], report["crop"], report["batch"], report["precision"]) == (FRAMES, CROP, 1, "float32")
    rows = {row["format"]: row for row in report["doors"]}
    assert [name for name in rows if name in FORMATS] == HERE
    for name in HERE:
        row = rows[name]
        assert row["refused"] is None and row["max_difference"] < row["tolerance"], row
        assert row["times_keras"] == pytest.approx(report["keras_ms"] / row["ms"])
        assert (folder / row["file"]).exists() and row["bytes"] > 0
    assert rows["litert-int8"]["bytes"] < rows["litert"]["bytes"]
    assert rows["litert"]["max_difference"] < 1e-5 < rows["litert-int8"]["max_difference"]
    assert sorted(path.name for path in run_folder.parent.iterdir()) == ["export", "run"]


def test_each_runtime_without_this_package(report, run_folder, tmp_path):
    model = load_model(run_folder)
    clips = np.random.default_rng(5).integers(0, 256, (2, FRAMES, CROP, CROP, 3), np.uint8)
    clips[1, :, :, : CROP // 2] //= 4
    np.save(tmp_path / "clips.npy", clips)
    apart(CLIENT, report["folder"], tmp_path / "clips.npy", tmp_path / "found.npz")
    found, expected = np.load(tmp_path / "found.npz"), probabilities(model, clips)
    wanted = {"litert": "model", "litert-int8": "model-int8", "onnx": "onnx", "openvino": "openvino"}
    assert set(found.files) == {wanted[name] for name in HERE if name in wanted}
    for name in found.files:
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=0.25 if name == "model-int8" else 1e-4)
    assert np.ptp(expected, axis=1).min() > 0.05
    served = tf.saved_model.load(f"{report['folder']}/saved_model/1").signatures["serving_default"]
    np.testing.assert_allclose(served(frames=tf.constant(clips))["probabilities"], expected, rtol=0, atol=1e-4)


@pytest.mark.skipif(doors.lacking("openvino") is not None, reason=f"openvino {doors.lacking('openvino')}")
def test_signals_are_handled_after_openvino(tmp_path):
    call = [sys.executable, "-X", "faulthandler", "-c", SIGNALLED, str(tmp_path / "model.xml")]
    run = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "handled\n"), run.stderr


@pytest.mark.skipif(not native_status()["available"], reason=f"no native library: {native_status()['reason']}")
def test_native_operations_with_their_library(run_folder, tmp_path):
    report = export_run(run_folder, tmp_path / "1", native=True)
    assert "KerasStss>Stss" in report["operations"]
    assert report["library"] == str(tmp_path / "1" / "assets.extra" / "keras_stss_native.so")
    clips = np.random.default_rng(5).integers(0, 256, (1, FRAMES, CROP, CROP, 3), np.uint8)
    np.save(tmp_path / "clips.npy", clips)
    apart(NATIVE_CLIENT, tmp_path / "1", tmp_path / "clips.npy", tmp_path / "found.npy")
    expected = probabilities(load_model(run_folder), clips)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, rtol=0, atol=1e-4)


@pytest.fixture
def quick(monkeypatch):
    """For tests of what happens round the conversion, which takes its seconds."""

    def save(classify, saved_model, file, labels):
        file.write_text(json.dumps(labels))

    def load(file, threads):
        return lambda frames: np.full((len(frames), len(LABELS)), 1 / len(LABELS), np.float32)

    found = {"model.tflite": Difference(1e-6, 1.0), "model-int8.tflite": Difference(0.1, 1.0)}
    for name, door in list(doors.DOORS.items()):
        monkeypatch.setitem(doors.DOORS, name, door._replace(save=save, load=load, packages=()))
    monkeypatch.setattr(doors, "classifier", lambda *_: None)
    monkeypatch.setattr(doors, "save_graph", lambda *_: None)
    monkeypatch.setattr(doors, "make_case", lambda model, data, batch: make_tiny_case(data, batch))
    monkeypatch.setattr(doors, "time_in_turns", lambda functions: dict.fromkeys(functions, 2.0))
    order = iter([])
    monkeypatch.setattr(doors, "compare", lambda *_: next(order))

    def set_found(*differences):
        nonlocal order
        order = iter(differences)

    set_found(*found.values())
    return set_found


def make_tiny_case(data, batch):
    from keras_stss.export.check import Case

    clips = np.zeros((batch, data.frames, data.crop, data.crop, 3), np.uint8)
    return Case(clips, np.full((batch, len(LABELS)), 1 / len(LABELS), np.float32), batch, 0)


def test_a_format_that_differs_is_left_out(run_folder, tmp_path, quick, capsys):
    """The others are written; the exit code and a line say it. Where all are refused nothing is left."""
    quick(Difference(float("inf"), 1.0), Difference(0.1, 1.0))
    command = ["export", str(run_folder), str(tmp_path / "out"), "--format", "litert,litert-int8"]
    assert main(command) == 2
    output = capsys.readouterr()
    assert "refused: litert: its probabilities are not the model's: some are no numbers" in output.err
    assert "written all the same: model-int8.tflite" in output.err
    assert "model-int8.tflite" in output.out and "2.0" in output.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "export.json",
        "labels.json",
        "model-int8.tflite",
    ]
    table = (tmp_path / "out" / "export.json").read_text()
    assert json.loads(table, parse_constant=pytest.fail)["doors"][0]["max_difference"] is None

    quick(Difference(0.3, 1.0), Difference(0.1, 0.5))
    assert main([*command, "--force"]) == 2
    error = capsys.readouterr().err
    assert "litert: its probabilities are not the model's: they differ by 3.0e-01, more than 1e-04" in error
    assert "litert-int8: its first class is the model's for 50% of the clips alone" in error
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model-int8.tflite").is_file()  # of the export before

    quick(Difference(1e-6, 1.0), Difference(0.1, 1.0))
    assert main([*command, "--force", "--json"]) == 0
    assert [row["refused"] for row in json.loads(capsys.readouterr().out)["doors"]] == [None, None]


def test_nothing_is_left_of_a_saved_model_that_is_refused(run_folder, tmp_path, quick, monkeypatch):
    def write(opened, folder, native):
        folder.mkdir(parents=True)
        raise doors.ExportError("the exported graph would need this Python process")

    monkeypatch.setattr(doors, "write_saved_model", write)
    quick(Difference(1e-6, 1.0))
    report = export_doors(run_folder, tmp_path / "out", ("saved_model", "litert"))
    assert [bool(row["refused"]) for row in report["doors"]] == [True, False]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["export.json", "labels.json", "model.tflite"]


def test_a_converter_that_fails_is_named(run_folder, tmp_path, quick, monkeypatch):
    def fail(classify, saved_model, file, labels):
        file.write_text("half")
        raise ValueError("first line\nerror: 'tf.Strange' op is not known\nmore")

    monkeypatch.setitem(doors.DOORS, "litert", doors.DOORS["litert"]._replace(save=fail))
    quick(Difference(0.1, 1.0))
    report = export_doors(run_folder, tmp_path / "out", ("litert", "litert-int8"))
    assert "its converter cannot take this model: error: 'tf.Strange' op" in report["doors"][0]["refused"]
    assert not (tmp_path / "out" / "model.tflite").exists()


def test_wrong_requests(run_folder, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match="holds files but no export"):
        export_doors(run_folder, mine, ("litert",), force=True)
    with pytest.raises(ConfigError, match=r"formats are saved_model, .* Received: tflite"):
        export_doors(run_folder, tmp_path / "out", ("tflite", "onnx"))
    with pytest.raises(ConfigError, match="batch must be at least 1"):
        export_doors(run_folder, tmp_path / "out", ("litert",), batch=0)
    assert main(["export", str(run_folder), str(tmp_path / "out"), "--format", "litert", "--batch", "0"]) == 2
    with pytest.raises(ConfigError, match=r"all, which stands alone\. Received: all, an empty name"):
        doors.check_formats(["all", "litert", ""])
    with pytest.raises(ConfigError, match="saved_model alone"):
        export_doors(run_folder, tmp_path / "out", ("litert",), native=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"format onnx needs onnx, .*: pip install 'keras-stss\[onnx\]'"):
        export_doors(run_folder, tmp_path / "out", ("onnx",))
    assert doors.check_formats(("all",)) == ("saved_model", "litert", "litert-int8")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_comparison_and_speed(run_folder):
    model = load_model(run_folder)
    from keras_stss.training.saving.run import read_run

    case = make_case(model, read_run(run_folder)[1].data, batch=3)
    assert len(case.clips) == 9 and (case.count, case.validation) == (8, 0) and case.clips.dtype == np.uint8
    np.testing.assert_array_equal(case.clips[8], case.clips[0])
    np.testing.assert_allclose(case.expected[:2], probabilities(model, case.clips[:2]), atol=1e-6)
    served = iter(np.split(case.expected, len(case.clips) // 3))
    assert compare(lambda frames: next(served), case, 3) == Difference(0.0, 1.0)
    wrong = iter(np.split(np.roll(case.expected, 1, axis=1), len(case.clips) // 3))
    found = compare(lambda frames: next(wrong), case, 3)
    assert found.largest > 0.05 and found.same_class < 0.5
    nothing = compare(lambda frames: np.full((3, len(LABELS)), np.nan), case, 3)
    assert nothing.largest == float("inf")
    many = make_case(model, read_run(run_folder)[1].data, batch=20)  # more than twice as many as there are clips
    assert len(many.clips) == len(many.expected) == 20 and many.count == 8
    np.testing.assert_array_equal(many.expected[16:], many.expected[:4])
    calls = []
    times = time_in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3 and set(times) == {"a", "b"}
