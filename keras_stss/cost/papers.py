"""The cost columns of the three papers, row by row, and what the models here cost."""

import json

from keras_stss.config import parse_config
from keras_stss.cost.build import build_empty
from keras_stss.cost.count import count
from keras_stss.cost.rows import paper_rows
from keras_stss.cost.table import totals

#: How far a model that its paper fixes may be off, as shares of the paper's figures.
TOLERANCE = {"multiply_adds": 0.03, "parameters": 0.02}


def compare(rows=None):
    """Counts the papers' rows, for clips of 224×224 pixels.

    Args:
        rows: list of :class:`keras_stss.cost.rows.PaperRow`; all by default.

    Returns:
        List of dictionaries that JSON can hold: ``row``, ``source``, ``frames``, ``classes``; for ``multiply_adds`` and
        ``parameters`` ours, ``paper_…`` and ``…_difference``, a share of the paper's (None where it gives none);
        ``within``, whether both are within :data:`TOLERANCE`; ``reason``.
    """
    rows = paper_rows() if rows is None else rows
    wanted, found = {}, {}
    for row in rows:
        wanted.setdefault((_network(row), row.classes), {})[row.frames] = row
    for network, by_frames in wanted.items():
        model = build_empty(_config(next(iter(by_frames.values()))), network[1])
        found.update({(network, frames): totals(count(model, max(frames))) for frames in by_frames})
    return [_compare(row, found[(_network(row), row.classes), row.frames]) for row in rows]


def _config(row):
    # A config needs a data section; of it only the frames have to fit the model.
    data = {"format": "something_v1", "root": "", "frames": max(row.frames)}
    return parse_config({"data": data, "model": row.network}, source=row.name)


def _network(row):
    """The same text for rows that are of the same network, however they say it."""
    return json.dumps(_config(row).model_dump(mode="json")["model"])


def _compare(row, ours):
    result = {"row": row.name, "source": row.source, "frames": list(row.frames), "classes": row.classes, "within": True}
    for name, paper in (("multiply_adds", row.giga and row.giga * 1e9), ("parameters", row.mega and row.mega * 1e6)):
        difference = None if paper is None else ours[name] / paper - 1
        result |= {name: ours[name], f"paper_{name}": paper, f"{name}_difference": difference}
        result["within"] &= difference is None or abs(difference) <= TOLERANCE[name]
    return {**result, "reason": row.reason}
