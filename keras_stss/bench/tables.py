"""Measured rows as Markdown tables."""

from pathlib import Path

from keras_stss.bench.machine import BUSY
from keras_stss.bench.workers import BenchError

MODES = {"stss": ("forward", "forward + backward"), "block": ("inference", "training step")}
MODES["model"] = MODES["block"]


def render(result):
    """Markdown of what :func:`keras_stss.bench.bench` returns: tables, and what they were measured on."""
    shapes = list(dict.fromkeys(case["shape"] for case in result["cases"]))
    lines = []
    for shape in shapes:
        forward, step = (
            {case["mode"]: case for case in result["cases"] if case["shape"] == shape}[mode]
            for mode in ("forward", "step")
        )
        lines += [f"**{shape}**", "", *_comparison(result["kind"], forward, step), ""]
    if result.get("growth"):
        lines += ["**How our cost grows**, one size at a time", "", *_growth(result["growth"]), ""]
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


def _comparison(kind, forward, step):
    names = MODES[kind]
    memory = any(row.get("memory") is not None for row in forward["rows"])
    header = ["", f"{names[0]}, ms (quartiles)", "ratio", f"{names[1]}, ms (quartiles)", "ratio"]
    header += ["memory, MB", "with backward, MB"] if memory else []
    rows = [header, ["---"] * len(header)]
    bases = [_base(case["rows"]) for case in (forward, step)]
    for pair in zip(forward["rows"], step["rows"]):
        cells = [pair[0]["label"]]
        for row, base in zip(pair, bases):
            cells += [_time(row), f"{row['median'] / base:.2f}" if _counts(row) and base else ""]
        if memory:
            cells += [_megabytes(row.get("memory")) for row in pair]
        rows.append(cells)
    for label, seconds in _floors(forward, step):
        cells = [label]
        for value, base in zip(seconds, bases):
            cells += [f"{1e3 * value:.2f}", f"{value / base:.2f}" if base else ""]
        rows.append(cells + [""] * (len(header) - len(cells)))
    return ["| " + " | ".join(cells) + " |" for cells in rows]


def _floors(forward, step):
    if "floors" not in forward:
        return []
    floors = [forward["floors"], step["floors"]]
    rate = " and ".join(f"{floor['macs_per_second'] / 1e9:.0f}" for floor in floors)
    copied = " and ".join(f"{floor['bytes_per_second'] / 1e9:.0f}" for floor in floors)
    return [
        (f"*floor: multiply-adds at {rate} G/s*", [floor["arithmetic"] for floor in floors]),
        (f"*floor: bytes at {copied} GB/s*", [floor["copy"] for floor in floors]),
    ]


def _base(rows):
    """What ratios are to: the first row's median, ours."""
    return next((row["median"] for row in rows[:1] if _counts(row)), None)


def _counts(row):
    return "median" in row and not row.get("wrong")


def _time(row):
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


def _megabytes(size):
    return "" if size is None else f"{size / 1e6:.1f}"


def _growth(rows):
    header = ["", "native forward, ms", "native + backward", "reference forward", "reference + backward"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        mark = " (base)" if row["base"] else ""
        times = [row[f"{who} {mode}"] for who in ("native", "reference") for mode in ("forward", "step")]
        lines.append([f"{row['what']} = {row['value']}{mark}", *("" if time is None else _ms(time) for time in times)])
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _notes(result):
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    notes = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, "
        f"{machine['date']}; {versions}.",
        f"Medians in one run of {result['seconds']:.0f} s, contestants in turn, with quartiles; ratios are to the "
        "first row. Everybody's numbers were compared with the same truth before they were timed.",
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
