"""What the runs are: cost, config, versions."""

import importlib.metadata
import platform
import re

import yaml

from keras_stss.bench import machine
from keras_stss.cost import CostError, cost
from keras_stss.pages import details, element, escape, pairs, section, table
from keras_stss.report.results import named

_PACKAGES = ("keras-stss", "keras", "numpy", "av")
_TENSORFLOW = ("tensorflow", "tensorflow-cpu")
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def costs(runs):
    """{run's name: what :func:`keras_stss.cost.cost` says}, of those that can be counted."""
    found = {}
    for run in runs:
        if run.config is None:
            continue
        if run.is_ensemble and not run.config.model.ensemble:
            run.notes.append(
                f"no cost of {run.name}: best.keras is an ensemble, which config.yaml (model.ensemble) does not say"
            )
            continue
        try:
            found[run.name] = cost(run.config, len(run.labels))
        except (CostError, ValueError) as error:  # what Keras says of a model that cannot be built
            run.notes.append(f"the cost of {run.name} cannot be counted: {error}")
    return found


def cost_section(runs, counted):
    """Parameters, multiply-adds and speed of each run; stages to open."""
    if not counted:
        return None
    rows, stages = [], []
    for number, run in enumerate(runs):
        if run.name not in counted:
            continue
        found = counted[run.name]
        clip = f"{found['frames']} × {found['height']} × {found['width']}"
        rows.append(
            [
                named(runs, number),
                found["model"],
                clip,
                _short(found["parameters"]),
                _short(found["multiply_adds"]),
                _speed(run),
            ]
        )
        listed = [[row["stage"], _short(row["parameters"]), _short(row["multiply_adds"])] for row in found["stages"]]
        stages.append(details(f"stages of {run.name}", table(["stage", "parameters", "multiply-adds"], listed)))
    heads = ["run", "model", "frames × size", "parameters", "multiply-adds a clip", "training clips per second"]
    note = "Multiply-adds, which papers call FLOPs, of one clip and crop; the speed of the last epoch, where it ran."
    return section("Cost", table(heads, rows), *stages, note=note)


def _short(count):
    """A count with two digits behind the point, in the unit that it fills."""
    size, unit = next(((size, unit) for size, unit in _UNITS if count >= size), (None, ""))
    return f"{count / size:.2f} {unit}" if size else str(count)


def _speed(run):
    speeds = [row["clips_per_second"] for row in run.rows if row.get("clips_per_second")]
    return f"{speeds[-1]:.1f}" if speeds else None


def config_section(runs):
    """What was asked for: of one run what is not as by default, of several what differs; the whole files to open."""
    parts, note = (
        [],
        "No key differs from its default." if len(runs) == 1 else "The configs are the same but for train.run.",
    )
    rows = _changed(runs[0]) if len(runs) == 1 else _different(runs)
    if rows:
        rows = [[_breakable(key), *values] for key, *values in rows]
        heads = (
            ["key", "value", "default"]
            if len(runs) == 1
            else ["key", *(named(runs, number) for number in range(len(runs)))]
        )
        parts.append(table(heads, rows))
        note = "What is not as by default." if len(runs) == 1 else "What differs between the runs."
    for run in runs:
        parts.append(details(f"config.yaml of {run.name}", element("pre", run.text)))
    return section("Config", *parts, note=note)


def _breakable(key):
    """A dotted key that may go over to the next line behind its dots."""
    *before, last = key.split(".")
    return escape([*(escape([f"{part}.", element("wbr")]) for part in before), last])


def _changed(run):
    if run.config is None:
        return []
    default = flat({name: field.get_default(call_default_factory=True) for name, field in _fields(run.config)})
    found = flat(run.config.model_dump(mode="json", exclude_defaults=True))
    return [
        [key, _shown(value), _shown(default.get(key, _ABSENT))] for key, value in found.items() if key != "train.run"
    ]


def _fields(config):
    """(key, field) of all keys of a config."""
    for section_name, part in config:
        for name, field in type(part).model_fields.items():
            if not field.is_required():
                yield f"{section_name}.{name}", field


_ABSENT = object()


def flat(values, prefix=""):
    """Nested dictionaries as {dotted key: value}."""
    found = {}
    for key, value in values.items():
        if hasattr(value, "model_dump"):
            value = value.model_dump(mode="json")
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _different(runs):
    all_values = [flat(run.values) for run in runs]
    keys = dict.fromkeys(key for values in all_values for key in values)
    # A section that is empty in one run and not in another shows in its keys.
    keys = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    found = []
    for key in keys:
        values = [values.get(key, _ABSENT) for values in all_values]
        if key != "train.run" and any(value != values[0] for value in values[1:]):
            found.append([key, *(_shown(value) for value in values)])
    return found


def _shown(value):
    if value is _ABSENT:
        return "–"
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000).removesuffix("\n...\n").strip()
    )


def versions(runs):
    """What the runs say that they were made with, and what this page was made with."""
    rows = []
    for number, run in enumerate(runs):
        saved = run.saved_by()
        lines = (
            [f"best.keras saved by Keras {saved['keras_version']} on {saved['date_saved'].replace('@', ' at ')}"]
            if len(saved) >= 2
            else []
        )
        # Of a run that was continued the last start counts.
        for pattern in (r"INFO (\S+: [\d,]+ training and .*)", r"INFO (native operations.*)"):
            lines += [found[-1] for found in [re.findall(pattern, "\n".join(run.log()))] if found]
        rows.append((named(runs, number), escape([element("div", line) for line in lines or ["nothing recorded"]])))
    rows.append(("this page", escape([element("div", line) for line in _here()])))
    return section("Versions", pairs(rows))


def _here():
    found = machine.describe()
    yield ", ".join([f"{name} {version}" for name in _PACKAGES if (version := _version(name))] + [_tensorflow()])
    python = f"Python {platform.python_version()}"
    yield ", ".join([python, found["system"], found["cpu"], f"{found['cores']} cores", found["gpu"] or "no GPU"])
    yield f"made on {found['date']}"


def _tensorflow():
    return next((f"TensorFlow {version}" for name in _TENSORFLOW if (version := _version(name))), "TensorFlow")


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
