"""Cost as text: a model's layers and stages, and the papers' rows beside ours."""

import re

BAR = 40


def totals(rows):
    """Parameters and multiply-adds, of all :class:`keras_stss.cost.count.Row` and by stage.

    Stages stand in the order they run, those of the members of an ensemble one member after another.

    Returns:
        Dictionary that JSON can hold: ``parameters``, ``multiply_adds``, ``stages`` (a list of dictionaries).
    """
    stages = {}
    for row in rows:
        stage = stages.setdefault(row.stage, {"stage": row.stage, "parameters": 0, "multiply_adds": 0})
        stage["parameters"] += row.parameters
        stage["multiply_adds"] += row.multiply_adds
    members = {name: re.match(r"member\d+|", name)[0] or "~" for name in stages}  # ~ stands behind letters
    stages = {name: stages[name] for name in sorted(stages, key=members.get)}
    summed = {key: sum(stage[key] for stage in stages.values()) for key in ("parameters", "multiply_adds")}
    return {**summed, "stages": list(stages.values())}


def render_model(found):
    """Text of what :func:`keras_stss.cost.cost` returns: layers, stages with bars, and the sum."""
    layers = [
        [row["layer"], row["kind"], "×".join(map(str, row["output_shape"])), *_figures(row)] for row in found["layers"]
    ]
    most = max(stage["multiply_adds"] for stage in found["stages"]) or 1
    stages = [
        [stage["stage"], *_figures(stage), _share(stage, found), "█" * round(BAR * stage["multiply_adds"] / most)]
        for stage in found["stages"]
    ]
    stages.append(["all", *_figures(found), "", ""])
    heading = f"{found['model']}, one clip of {found['frames']} frames of {found['height']}×{found['width']} pixels"
    lines = [
        heading,
        "",
        *_columns([["layer", "products", "output", "parameters", "multiply-adds"], *layers], right=(3, 4)),
        "",
        *_columns([["stage", "parameters", "multiply-adds", "share", ""], *stages], right=(1, 2, 3)),
        "",
        f"{found['multiply_adds'] / 1e9:.2f} G multiply-adds, {found['parameters'] / 1e6:.2f} M parameters",
    ]
    missing = [row["layer"] for row in found["layers"] if row["kind"] == "not counted"]
    return "\n".join(lines + ([f"no products were seen in: {', '.join(missing)}"] if missing else []))


def render_papers(rows):
    """Text of what :func:`keras_stss.cost.papers.compare` returns."""
    lines = [["", "source", "frames", "G paper", "G here", "", "M paper", "M here", ""]]
    lines += [_paper_cells(row) for row in rows]
    notes = [f"{row['row']} ({row['source']}): {row['reason']}" for row in rows if row["reason"]]
    return "\n".join([*_columns(lines, right=range(2, 9)), "", *notes])


def markdown_papers(rows):
    """The same as a Markdown table, the reasons in its last column."""
    header = ["model", "source", "frames", "G, paper", "G, here", "", "M, paper", "M, here", "", "reason"]
    lines = [header, ["---"] * 2 + ["---:"] * 7 + ["---"]]
    lines += [[*_paper_cells(row), row["reason"]] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _paper_cells(row):
    cells = [row["row"], row["source"], "+".join(map(str, row["frames"]))]
    for name, unit in (("multiply_adds", 1e9), ("parameters", 1e6)):
        paper, difference = row[f"paper_{name}"], row[f"{name}_difference"]
        cells += ["" if paper is None else f"{paper / unit:g}", f"{row[name] / unit:.2f}"]
        cells.append("" if paper is None else f"{difference:+.1%}")
    return cells


def _figures(row):
    return [f"{row['parameters']:,}", f"{row['multiply_adds']:,}"]


def _share(stage, found):
    return f"{stage['multiply_adds'] / max(found['multiply_adds'], 1):.1%}"


def _columns(lines, right):
    """Lines of cells as text in columns; ``right``: numbers of the columns that are set to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    ]
