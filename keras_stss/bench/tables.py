"""Measured rows as Markdown tables."""

from pathlib import Path

from keras_stss.bench import data_tables, training_tables
from keras_stss.bench.machine import BUSY
from keras_stss.bench.workers import BenchError

MODES = {"stss": ("forward", "forward + backward"), "block": ("inference", "training step")}
MODES["model"] = MODES["block"]
DIFFERENCES = {
    "stss": "largest to float64, of the volume · of the gradient as a share of its largest value",
    "block": "to our reference in the L2 norm, of the outputs · of outputs and input's gradient in the training step",
    "model": "to our reference in the L2 norm, of the logits · of the first convolution's gradient",
    "data": "mean, of decoded pixels to ours from the files, in levels of 255",
    "train": "of the first step's loss, relative to that of our loop: the same weights have seen the same clips",
}
#: Kinds whose rows count clips a second.
OWN = {"data": data_tables.render, "train": training_tables.render}
RATIOS = {"stss": "to native", "block": "to native", "model": "to TSM-R18"}


def render(result):
    """Markdown of what :func:`keras_stss.bench.bench` returns: tables, and what they were measured on."""
    if result["kind"] in OWN:
        return "\n".join([*OWN[result["kind"]](result), *_notes(result)]) + "\n"
    lines = []
    for shape in dict.fromkeys(case["shape"] for case in result["cases"]):
        cases = [case for case in result["cases"] if case["shape"] == shape]
        lines += [f"**{shape}**", "", *_comparison(result["kind"], cases), ""]
    if result.get("growth"):
        lines += ["**How our cost grows**: a base, and one size changed at a time", "", *_growth(result["growth"]), ""]
    return "\n".join([*lines, *_notes(result)]) + "\n"


def find_place(path, kind):
    """The text before and after the tables of ``kind`` in a Markdown file: two lines of comments mark their place.

    Raises:
        BenchError: where the file has no such lines.
    """
    begin, end = f"<!-- bench {kind} -->\n", f"<!-- end of bench {kind} -->"
    page = Path(path).read_text(encoding="utf-8")
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise BenchError(f"{path} has no place for the tables: it must hold the lines {begin.strip()} and {end}")
    return before + begin, end + after


def write_into(path, kind, text):
    """Puts the tables into their place in a Markdown file; see :func:`find_place`."""
    before, after = find_place(path, kind)
    Path(path).write_text(before + text + after, encoding="utf-8")


def _comparison(kind, cases):
    """One row a contestant, its figures in the modes side by side; ``cases`` are of the same shape."""
    memory = any(row.get("memory") is not None for case in cases for row in case["rows"])
    header = [""]
    for name in MODES[kind]:
        header += [f"{name}, ms (quartiles)", RATIOS[kind]]
    header += ["difference"] + (["memory, MB", "with backward, MB"] if memory else [])
    lines = [header, ["---"] * len(header)]
    for label in dict.fromkeys(row["label"] for case in cases for row in case["rows"]):
        rows = [next((row for row in case["rows"] if row["label"] == label), {}) for case in cases]
        cells = [label]
        for row, case in zip(rows, cases):
            base = _median(case["rows"], row.get("base"))
            cells += [_time(row), f"{row['median'] / base:.2f}" if _counts(row) and base else ""]
        cells.append(" · ".join(f"{row['difference']:.0e}" for row in rows if "difference" in row))
        if memory:
            cells += ["" if row.get("memory") is None else f"{row['memory'] / 1e6:.1f}" for row in rows]
        lines.append(cells)
    for label, seconds in _floors(cases):
        cells = [label]
        for value, case in zip(seconds, cases):
            base = _median(case["rows"], case["rows"][0]["base"])
            cells += [_ms(value), f"{value / base:.2f}" if base else ""]
        lines.append(cells + [""] * (len(header) - len(cells)))
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _floors(cases):
    if "floors" not in cases[0]:
        return []
    floors = [case["floors"] for case in cases]
    rate = " and ".join(f"{floor['macs_per_second'] / 1e9:.0f}" for floor in floors)
    copied = " and ".join(f"{floor['bytes_per_second'] / 1e9:.0f}" for floor in floors)
    return [
        (f"*floor: multiply-adds of whole windows at {rate} G/s*", [floor["arithmetic"] for floor in floors]),
        ("*floor: of what lies inside the clip*", [floor["arithmetic_inside"] for floor in floors]),
        (f"*floor: bytes at {copied} GB/s*", [floor["copy"] for floor in floors]),
    ]


def _median(rows, label):
    """What ratios are to: the median of the row of that label, where it counts."""
    return next((row["median"] for row in rows if row["label"] == label and _counts(row)), None)


def _counts(row):
    return "median" in row and not row.get("wrong")


def _time(row):
    if not row:
        return ""
    if "error" in row:
        return f"not measured: {row['error']}"
    if row.get("wrong"):
        return f"{1e3 * row['median']:.1f}, but {row['wrong']}"
    busy = " †" if (row["others"] or 0) > BUSY else ""
    return f"{_ms(row['median'])} ({_ms(row['low'])}–{_ms(row['high'])}){busy}"


def _ms(seconds):
    return (
        f"{1e3 * seconds:.2f}"
        if seconds < 0.01
        else f"{1e3 * seconds:.1f}"
        if seconds < 0.1
        else f"{1e3 * seconds:.0f}"
    )


def _growth(rows):
    header = ["", "native forward, ms", "native + backward", "reference forward", "reference + backward"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        times = [row[f"{who} {mode}"] for who in ("native", "reference") for mode in ("forward", "step")]
        lines.append([row["changed"], *("" if time is None else _ms(time) for time in times)])
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _notes(result):
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    notes = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, "
        f"{machine['date']}; {versions}.",
        f"Medians in one run of {result['seconds']:.0f} s, contestants in turn. *Difference*: "
        f"{DIFFERENCES[result['kind']]}.",
        _gpu_note(machine["gpu"]),
    ]
    timed = [row for case in result["cases"] for row in case["rows"] if "median" in row]
    if busy := sum((row["others"] or 0) > BUSY for row in timed):
        notes.append(
            f"† **The machine was busy**: in {busy} of {len(timed)} figures other processes had more than {BUSY:.0%} "
            "of it. Run it again when it is quiet."
        )
    if any(row["others"] is None for row in timed):
        notes.append("Whether the machine was busy cannot be told on this system.")
    if result["quick"]:
        notes.append("**Quick run: tiny shapes, few calls. These figures mean nothing.**")
    return [line for note in notes for line in (note, "")][:-1]


def _gpu_note(gpu):
    if gpu is None:
        return "GPU: none in this machine, so nothing is said about one; `benchmarks/gpu` measures where there is one."
    return f"GPU: these are CPU figures; `benchmarks/gpu` measures on the {gpu}."
