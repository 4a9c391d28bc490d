"""The rows of the benchmark of training as Markdown tables."""

from keras_stss.bench.machine import BUSY


def render(result):
    """Lines of Markdown: a table for each model."""
    lines = []
    for case in result["cases"]:
        lines += [f"**{case['shape']}**", "", *_table(case), ""]
    return lines


def _table(case):
    lines = [
        "|  | clips/s (quartiles) | to model.fit | waiting for data | difference |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in case["rows"]:
        if "error" in row:
            cells = [f"not measured: {row['error']}", "", "", ""]
        else:
            cells = [_rate(row, case["clips"]), _ratio(row, case["rows"]), "", f"{row['difference']:.0e}"]
            cells[2] = "" if row["waited"] is None else f"{row['waited']:.1%}"
        lines.append("| " + " | ".join([row["label"], *cells]) + " |")
    return lines


def _rate(row, clips):
    rate, low, high = (clips / row[name] for name in ("median", "high", "low"))
    if row.get("wrong"):
        return f"{rate:.1f}, but {row['wrong']}"
    return f"{rate:.1f} ({low:.1f}–{high:.1f})" + (" †" if (row["others"] or 0) > BUSY else "")


def _ratio(row, rows):
    """Of clips a second."""
    base = next((other for other in rows if other["label"] == row["base"] and "median" in other), None)
    return "" if base is None or row.get("wrong") else f"{base['median'] / row['median']:.2f}"
