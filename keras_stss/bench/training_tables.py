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
        "|  | clips/s (quartiles) | to model.fit (95 %) | in processor time (95 %) | waiting for data | difference |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in case["rows"]:
        if "error" in row:
            cells = [f"not measured: {row['error']}", "", "", "", ""]
        else:
            ratios = [_ratio(row, of) for of in ("ratio", "processor_ratio")]
            cells = [_rate(row, case["clips"]), *ratios, "", f"{row['difference']:.0e}"]
            cells[3] = "" if row["waited"] is None else f"{row['waited']:.1%}"
        lines.append("| " + " | ".join([row["label"], *cells]) + " |")
    return lines


def _rate(row, clips):
    rate, low, high = (clips / row[name] for name in ("median", "high", "low"))
    if row.get("wrong"):
        return f"{rate:.1f}, but {row['wrong']}"
    return f"{rate:.1f} ({low:.1f}–{high:.1f})" + (" †" if (row["others"] or 0) > BUSY else "")


def _ratio(row, of):
    """Above 1 is faster than model.fit, or cheaper."""
    if row["label"] == row["base"]:
        return "1"
    found = row[of]
    if found is None or row.get("wrong"):
        return ""
    between = "" if found["low"] is None else f" ({found['low']:.2f}–{found['high']:.2f})"
    return f"{found['median']:.2f}{between}"
