"""The rows of the benchmark of data as Markdown tables: clips a second, not milliseconds."""

from keras_stss.bench.machine import BUSY

TITLES = {"read": "read", "decode": "decode", "batch": "whole stream", "augment": "augment"}


def render(result):
    """Lines of Markdown: a table for each storage form, one for augmentation, and one for memory."""
    frames = result["size"]["frames"]
    lines = [
        f"Clips of {result['size']['length']} frames of {result['size']['height']}×{result['size']['width']} pixels, "
        f"{frames} of each, to {result['size']['crop']}×{result['size']['crop']}, in batches of "
        f"{result['size']['batch']}. "
        "In each cell: clips/s (quartiles) · frames/s · its share of ours from the files.",
        "",
    ]
    for shape in dict.fromkeys(case["shape"] for case in result["cases"]):
        cases = [case for case in result["cases"] if case["shape"] == shape]
        lines += [f"**{shape}**", "", *_table(cases, frames), ""]
    return [*lines, *_memory(result["memory"]), ""]


def _table(cases, frames):
    differences = any("difference" in row for case in cases for row in case["rows"])
    header = ["", *map(_title, cases)] + (["difference"] if differences else [])
    lines = [header, ["---"] * len(header)]
    everybody = max((case["rows"] for case in cases), key=len)
    for label in dict.fromkeys(row["label"] for row in everybody):
        rows = [next((row for row in case["rows"] if row["label"] == label), {}) for case in cases]
        cells = [_cell(row, case, frames) for row, case in zip(rows, cases)]
        # One reason is enough for a contestant that cannot run at all.
        seen = [place > 0 and "error" in rows[place] and cell in cells[:place] for place, cell in enumerate(cells)]
        cells = [label, *("" if again else cell for again, cell in zip(seen, cells))]
        if differences:
            cells.append(next((f"{row['difference']:.2f}" for row in rows if "difference" in row), ""))
        lines.append(cells)
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _title(case):
    threads = case.get("threads")
    return TITLES[case["mode"]] + (f", {threads} thread{'s' * (threads > 1)}" if threads else "")


def _cell(row, case, frames):
    if not row:
        return ""
    if "error" in row:
        return f"not measured: {row['error']}"
    rate, low, high = (case["clips"] / row[name] for name in ("median", "high", "low"))
    if row.get("wrong"):
        return f"{_rate(rate)}, but {row['wrong']}"
    base = next((other for other in case["rows"] if other["label"] == row["base"] and "median" in other), None)
    busy = " †" if (row["others"] or 0) > BUSY else ""
    ratio = "" if base is None else f" · {base['median'] / row['median']:.2f}"
    return f"{_rate(rate)} ({_rate(low)}–{_rate(high)}) · {_rate(rate * frames)}{ratio}{busy}"


def _rate(value):
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _memory(rows):
    lines = ["**Memory of a process that does nothing but take batches**, MB", ""]
    lines += ["|  | after some batches | in the middle | at the end | most |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['form']} | not measured: {row['error']} |  |  |  |")
            continue
        used = [f"{value / 1e6:.0f}" for value in (*row["used"], row["largest"])]
        lines.append(f"| {row['form']}, {row['batches']} batches | " + " | ".join(used) + " |")
    return lines
