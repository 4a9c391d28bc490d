"""A run in several formats at once, each checked on the spot, in one folder."""

import functools
import importlib.util
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from keras_stss.config import ConfigError
from keras_stss.export import litert, onnx, openvino
from keras_stss.export.check import compare, make_case, time_in_turns
from keras_stss.export.graph import classifier, save_graph
from keras_stss.export.place import check_target, size, writing
from keras_stss.export.saved_model import TOLERANCES, ExportError, load_saved_model, open_run, write_saved_model
from keras_stss.ops import portable

log = logging.getLogger(__name__)

#: The table of an export, in its folder.
MARKER = "export.json"
#: The SavedModel in it; TensorFlow Serving takes the parent of the numbered folder.
SAVED_MODEL = "saved_model/1"
COLUMNS = ("format", "file", "bytes", "max_difference", "tolerance", "same_class", "ms", "times_keras", "refused")
#: Weights of 8 bits: largest difference of probabilities, and least share of clips whose first class stays.
INT8_TOLERANCE, INT8_SAME_CLASS = 0.25, 0.9


class Door(NamedTuple):
    """A format that is converted from the graph of :mod:`keras_stss.export.graph`."""

    file: str
    save: Callable  # (traced function, its SavedModel, file, labels)
    load: Callable  # (file, threads) → function from frames to probabilities
    packages: tuple = ()
    extra: str = ""
    int8: bool = False


DOORS = {
    "litert": Door("model.tflite", litert.save, litert.load),
    "litert-int8": Door("model-int8.tflite", litert.save_int8, litert.load, int8=True),
    "onnx": Door("model.onnx", onnx.save, onnx.load, ("onnx", "tf2onnx", "onnxruntime"), "onnx"),
    "openvino": Door("model.xml", openvino.save, openvino.load, ("openvino",), "openvino"),
}
FORMATS = ("saved_model", *DOORS)


def check_formats(formats):
    """The formats that a list names, ``"all"`` for those whose packages are there; raises ConfigError for others."""
    if list(formats) == ["all"]:
        return tuple(name for name in FORMATS if not lacking(name))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        received = ", ".join(name or "an empty name" for name in unknown) or "none"
        raise ConfigError(f"formats are {', '.join(FORMATS)}, or all, which stands alone. Received: {received}")
    for name in formats:
        if reason := lacking(name):
            raise ConfigError(f"format {name} {reason}")
    return tuple(dict.fromkeys(formats))


def lacking(name):
    """What is to be installed for a format, as a sentence's end, or None."""
    door = DOORS.get(name)
    absent = [package for package in (door.packages if door else ()) if importlib.util.find_spec(package) is None]
    return f"needs {', '.join(absent)}: pip install 'keras-stss[{door.extra}]'" if absent else None


def export_doors(run_folder, folder, formats=("all",), force=False, native=False, batch=1):
    """Writes a run's best model in several formats, compares each with the Keras model, and measures its speed.

    ``folder`` then holds ``saved_model/1`` (see :func:`keras_stss.export.export_run`), ``model.tflite``,
    ``model-int8.tflite``, ``model.onnx``, ``model.xml`` with ``model.bin``, ``labels.json`` (the classes by index) and
    ``export.json`` (what this returns). All but the SavedModel take ``frames`` uint8 (batch, T, crop, crop, 3), RGB,
    with batch fixed, and give ``probabilities`` float32 (batch, K). A format that cannot be converted, or whose
    probabilities differ too much, is left out; the others are written.

    Args:
        run_folder: a run directory with best.keras.
        folder: where to write; it appears once all is done.
        formats: of :data:`FORMATS`, or ``("all",)``: those whose packages are installed.
        force: replace an earlier export that is there.
        native: the SavedModel keeps the native operations.
        batch: clips at a time.

    Returns:
        dict that JSON can hold: ``folder``; ``frames`` (T), ``crop``, ``batch``, ``labels``, ``precision`` of the run;
        ``clips``, how many were compared, and ``validation_clips`` among them; ``threads``; ``keras_ms``, of the plain
        model on one batch; and ``doors``, a list of dicts with ``format``, ``file``, ``bytes``, ``max_difference``,
        ``tolerance``, ``same_class``, ``ms``, ``times_keras`` (keras_ms / ms) and ``refused`` (why it was left out).

    Raises:
        ConfigError: where run, folder or formats cannot be used, or every format was refused.
    """
    formats = check_formats(formats)
    if batch < 1:
        raise ConfigError(f"batch must be at least 1. Received: {batch}")
    if native and "saved_model" not in formats:
        raise ConfigError("native is for the format saved_model alone")
    check_target(folder, force, MARKER)
    opened = open_run(run_folder)
    with writing(folder, force, MARKER) as unfinished:
        unfinished.mkdir()
        report = _export(opened, unfinished, formats, native, batch)
        report = {"folder": os.path.abspath(folder), **report}
        text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
        (unfinished / "labels.json").write_text(json.dumps(opened.labels, ensure_ascii=False) + "\n", encoding="utf-8")
        (unfinished / MARKER).write_text(text, encoding="utf-8")
        if all(row["refused"] for row in report["doors"]):
            reasons = "; ".join(f"{row['format']}: {row['refused']}" for row in report["doors"])
            raise ConfigError(f"nothing was written to {folder}: {reasons}")
    return report


def _export(opened, folder, formats, native, batch):
    data, precision, threads = opened.config.data, opened.config.train.precision, len(os.sched_getaffinity(0))
    case = make_case(opened.model, data, batch)
    frames = case.clips[:batch]
    made, refused = _convert_all(opened, folder, formats, native, frames.shape)
    rows, functions = [], {"keras": lambda: opened.model(frames, training=False).numpy()}
    for name in formats:
        if name in refused:
            rows.append({**dict.fromkeys(COLUMNS), "format": name, "refused": refused[name]})
            continue
        for row, run in _check(name, made[name], case, batch, threads, TOLERANCES[precision]):
            rows.append(row)
            if row["refused"]:
                _remove(folder, name)
            else:
                functions[len(rows) - 1] = functools.partial(run, frames)
    times = time_in_turns(functions)
    for number, row in enumerate(rows):
        row["ms"] = times.get(number)
        row["times_keras"] = times["keras"] / row["ms"] if row["ms"] else None
    return {
        "frames": data.frames,
        "crop": data.crop,
        "batch": batch,
        "labels": opened.labels,
        "precision": precision,
        "clips": case.count,
        "validation_clips": case.validation,
        "threads": threads,
        "keras_ms": times["keras"],
        "doors": rows,
    }


def _convert_all(opened, folder, formats, native, shape):
    """({format: what :func:`_check` wants to know of it}, {format: why it was refused})."""
    made, refused = {}, {}
    if "saved_model" in formats:
        log.info("exporting saved_model")
        try:
            made["saved_model"] = write_saved_model(opened, folder / SAVED_MODEL, native) | {
                "path": folder / SAVED_MODEL
            }
        except ExportError as error:
            refused["saved_model"] = str(error)
            _remove(folder, "saved_model")
    converted = [name for name in formats if name in DOORS]
    if not converted:
        return made, refused
    with tempfile.TemporaryDirectory() as saved, portable():
        classify = classifier(opened.model, shape)
        save_graph(classify, saved)
        for name in converted:
            log.info("exporting %s", name)
            file = folder / DOORS[name].file
            try:
                DOORS[name].save(classify, Path(saved), file, opened.labels)
                made[name] = {"path": file}
            except Exception as error:  # whatever the converters raise; each has classes of its own
                refused[name] = f"its converter cannot take this model: {_first_line(error)}"
                _remove(folder, name)
    return made, refused


def _check(name, made, case, batch, threads, tolerance):
    """[(row of the table, function from frames to probabilities)]: one, or two where a file is run in two ways."""
    row = {**dict.fromkeys(COLUMNS), "format": name, "file": made["path"].name, "bytes": size(made["path"])}
    if name == "saved_model":
        run = load_saved_model(made["path"])
        row |= {"file": SAVED_MODEL, "library": made["library"]}
        found = compare(run, case, batch)
        # Native operations round otherwise than those of the case: they have been compared with their own kind.
        of_case = 0.0 if made["library"] else found.largest
        return [(_judge(row, found._replace(largest=max(of_case, made["max_difference"])), tolerance), run)]
    if name == "openvino":
        row["bytes"] += size(made["path"].with_suffix(".bin"))
    try:
        run = DOORS[name].load(made["path"], threads)
        found = compare(run, case, batch)
    except Exception as error:  # what the runtimes raise
        return [(row | {"refused": f"its runtime cannot run this model: {_first_line(error)}"}, None)]
    checked = [(_judge(row, found, INT8_TOLERANCE if DOORS[name].int8 else tolerance, DOORS[name].int8), run)]
    if name == "openvino" and not checked[0][0]["refused"]:
        checked += _own_precision(row, made["path"], case, batch, threads)
    return checked


def _own_precision(row, file, case, batch, threads):
    """The row of the same file as OpenVINO runs it by itself, where that is not float32; it is told, not judged."""
    own = openvino.own_precision(file, threads)
    if own == "f32":
        return []
    run = openvino.load(file, threads, own)
    found = compare(run, case, batch)
    row = row | {"format": f"openvino ({own})", "max_difference": found.largest, "same_class": found.same_class}
    return [(row | {"tolerance": None, "bytes": None}, run)]


def _judge(row, found, tolerance, int8=False):
    # JSON knows no infinity.
    largest = found.largest if math.isfinite(found.largest) else None
    row = row | {"max_difference": largest, "same_class": found.same_class, "tolerance": tolerance}
    # Written this way round, a difference that is not a number fails too.
    if not found.largest < tolerance:
        by = "some are no numbers" if largest is None else f"they differ by {largest:.1e}, more than {tolerance:.0e}"
        row["refused"] = f"its probabilities are not the model's: {by}"
    elif int8 and found.same_class < INT8_SAME_CLASS:
        row["refused"] = f"its first class is the model's for {found.same_class:.0%} of the clips alone"
    return row


def _remove(folder, name):
    if name == "saved_model":
        shutil.rmtree(folder / Path(SAVED_MODEL).parts[0])
        return
    file = folder / DOORS[name].file
    for path in (file, file.with_suffix(".bin")):
        path.unlink(missing_ok=True)


def _first_line(error):
    """Of a converter's error what says most: the line that names an error, without the places before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    named = [line for line in lines if "error:" in line or "Error" in line]
    return (named or lines)[0].split("): ")[-1][:200]
