"""Classes: how well each is told, and what is taken for what."""

import json
import unicodedata

import numpy as np

from keras_stss.pages import Markup, data_uri, element, escape, label, picture_bytes, section, table
from keras_stss.report.charts import color_of, svg
from keras_stss.report.results import named

#: Beyond so many classes, or squares of all runs, a matrix is a picture of small squares, without the names beside it.
NAMED, SQUARES = 40, 6400
_CELL, _EDGE, _LETTER = 20, 24, 6  # pixels of a cell, of the numbers beside them and of a letter
_LETTERS = 56  # of a name
_PAIRS = 12
_RIGHT, _WRONG = (42, 138, 74), (209, 102, 15)


def class_table(runs, protocol):
    """A line for each class, the worst first, with a bar for each run."""
    having = [(number, run) for number, run in enumerate(runs) if protocol in run.evaluations]
    if not having:
        return None
    rows = {}
    for number, run in having:
        for row in run.evaluations[protocol]["classes"]:
            rows.setdefault(row["class"], {})[number] = row
    order = sorted(rows, key=lambda index: (_mean(rows[index]), index))
    lines = [_class_line(rows[index], having) for index in order]
    note = f"By {protocol}, the worst first." + (" A bar for each run, in its colour." if len(having) > 1 else "")
    head = ["class", "clips", "right", "precision", "mostly taken for"]
    filtering = element("input", type="search", placeholder="Find a class", aria_label="Find a class", class_="find")
    box = element("div", table(head, lines, sortable=True), class_="tall" if len(lines) > 25 else None)
    finding = [filtering] if len(lines) > 25 else []
    return section("Classes", *finding, box, note=note)


def _mean(rows):
    known = [row["accuracy"] for row in rows.values() if row["accuracy"] is not None]
    return sum(known) / len(known) if known else 2.0


def _class_line(rows, having):
    first = next(iter(rows.values()))
    found = [rows.get(number) for number, _ in having]
    mean = _mean(rows)
    bars = [_bar(row, number if len(having) > 1 else 0) for row, (number, _) in zip(found, having)]
    taken = [_taken(row) for row in found]
    # A line for each bar, so that none may be broken.
    beside_bars = "stack left several" if len(having) > 1 else "stack left"
    precise = [_share(row and row["precision"]) for row in found]
    return [
        first["label"],
        first["clips"],
        element("div", *bars, class_="bars", data_key=f"{mean:.5f}"),
        element("div", *(element("div", text) for text in precise), class_="stack"),
        element("div", *(element("div", text) for text in taken), class_=beside_bars),
    ]


def _bar(row, number):
    share = row and row["accuracy"]
    if share is None:
        return element("div", "–")
    fill = element("i", style=f"width: {100 * share:.1f}%; background: {color_of(number)}")
    return element("div", element("span", fill, class_="bar"), f"{share:.0%}")


def _share(value):
    return "–" if value is None else f"{value:.0%}"


def _taken(row):
    if not row or not row["taken_for"]:
        return "–"
    return escape([label(row["taken_for"]), element("span", f" {row['taken_for_clips']}", class_="soft")])


def confusion(runs, protocol):
    """A matrix for each run, and the pairs most confused."""
    having = [(number, run) for number, run in enumerate(runs) if protocol in run.evaluations]
    if not having:
        return None
    labels = runs[0].labels
    total = sum(_counts(run, protocol) for _, run in having)
    is_large = len(labels) > NAMED or len(having) * len(labels) ** 2 > SQUARES
    order = near_order(total) if is_large else np.arange(len(labels))
    parts = []
    for number, run in having:
        counts = _counts(run, protocol)[np.ix_(order, order)]
        head = [element("h3", named(runs, number))] if len(runs) > 1 else []
        drawn = _as_picture(counts, run.name) if is_large else _as_grid(counts, labels)
        parts.append(element("div", *head, drawn))
    note = (
        "A row is the true class, a column what it was taken for; the fuller the colour, the more of the row's clips."
    )
    if is_large:
        note += " Classes that are taken for one another stand near each other; point at a square to read it."
        names = json.dumps([labels[index] for index in order], ensure_ascii=False)
        found = [_triplets(_counts(run, protocol)[np.ix_(order, order)]) for _, run in having]
        parts.append(_data("confusion-data", f'{{"labels":{names},"runs":{json.dumps(found, separators=(",", ":"))}}}'))
    matrices = element("div", *parts, class_="gallery", style="--least: 24rem") if is_large else escape(parts)
    return section("Confusion", matrices, *_pairs(runs, having, protocol), note=note)


def _counts(run, protocol):
    counts = np.zeros((len(run.labels),) * 2, np.int64)
    for true, said, clips in run.evaluations[protocol]["confusion"]:
        counts[true, said] = clips
    return counts


def near_order(counts):
    """An order of classes in which those that are taken for one another stand near each other.

    The order of the Fiedler vector of the graph of mistakes (Atkins, Boman and Hendrickson, "A spectral algorithm for
    seriation", SIAM J. Comput. 1998), for each connected part of it alone.

    Args:
        counts: (K, K), row the true class.

    Returns:
        (K,) indices.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    linked = shares + shares.T
    np.fill_diagonal(linked, 0)
    left, order = set(range(len(counts))), []
    while left:
        part = _connected(linked, min(left))
        left -= set(part)
        laplacian = np.diag(linked[np.ix_(part, part)].sum(axis=1)) - linked[np.ix_(part, part)]
        _, vectors = np.linalg.eigh(laplacian)
        # Of two opposite vectors the one that keeps the first class first.
        values = vectors[:, min(1, len(part) - 1)]
        places = np.argsort(values if values[0] <= values[-1] else -values, kind="stable")
        order += [part[place] for place in places]
    return np.asarray(order)


def _connected(linked, first):
    found, new = {first}, [first]
    while new:
        new = [int(place) for place in np.flatnonzero(linked[new].any(axis=0)) if place not in found]
        found.update(new)
    return sorted(found)


def _as_grid(counts, labels):
    """Numbers at the left and above, the names behind: on a phone the squares come first."""
    side = _CELL * len(labels)
    totals = np.maximum(counts.sum(axis=1), 1)
    names = [_short(text) for text in labels]
    parts = [element("rect", class_="frame", x=_EDGE, y=_CELL, width=side, height=side)]
    for row, name in enumerate(names):
        y = (row + 1) * _CELL + 14
        parts += [_text(row + 1, _EDGE - 6, y, "e"), _text(row + 1, _EDGE + (row + 0.5) * _CELL, 13, "m")]
        parts.append(_text(f"{row + 1}  {name}", _EDGE + side + 8, y, "s"))
    for row, column in np.argwhere(counts).tolist():
        clips, total = int(counts[row, column]), int(totals[row])
        x, y = _EDGE + column * _CELL + 1, (row + 1) * _CELL + 1
        title = f"{labels[row]} → {labels[column]}: {clips} of {total}"
        look = {
            "class": "right" if row == column else "wrong",
            "style": f"fill-opacity: {0.12 + 0.88 * clips / total:.2f}",
        }
        parts.append(element("rect", element("title", title), x=x, y=y, width=_CELL - 2, height=_CELL - 2, **look))
        if clips < 1000:
            parts.append(_text(clips, x + _CELL / 2 - 1, y + 13, "m on" if clips > 0.55 * total else "m"))
    width = _EDGE + side + 8 + _LETTER * (max(map(_width, names)) + 4)
    drawn = svg(width, _CELL * (len(labels) + 1) + 2, parts, "confusion matrix", class_="grid", fixed=True)
    return element("div", drawn, class_="wide")


def _short(text):
    """A name that is not too wide; of a long one the beginning and the end, in which names tend to differ."""
    while _width(text) > _LETTERS:
        half = len(text.replace("…", "")) // 2
        text = text.replace("…", "")
        text = f"{text[: half - 1]}…{text[half + (len(text) % 2) :]}"
    return text


def _width(text):
    """Of a text, in Latin letters."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _as_picture(counts, name):
    """A pixel a cell: green where right, orange where not, and as full as the share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = np.zeros((*counts.shape, 4), np.uint8)
    picture[..., :3] = np.where(np.eye(len(counts), dtype=bool)[..., None], _RIGHT, _WRONG)
    picture[..., 3] = np.where(counts > 0, np.round(255 * (0.4 + 0.6 * shares)), 0)
    uri = data_uri(picture_bytes(picture))
    image = element("img", src=uri, alt=f"confusion matrix of {name}", class_="pixels matrix")
    return escape([image, element("p", Markup("&nbsp;"), class_="small told", aria_live="polite")])


def _triplets(counts):
    return [[int(row), int(column), int(counts[row, column])] for row, column in np.argwhere(counts)]


def _data(name, text):
    """JSON for the page's script, in which nothing can end its element."""
    return Markup(f'<script type="application/json" id="{name}">' + text.replace("<", "\\u003c") + "</script>")


def _pairs(runs, having, protocol):
    rows = []
    for number, run in having:
        for pair in run.evaluations[protocol]["confused"][: _PAIRS if len(having) == 1 else _PAIRS // 2]:
            both = pair["a_as_b"] + pair["b_as_a"]
            rows.append([named(runs, number), pair["a"], pair["b"], both, pair["a_as_b"], pair["b_as_a"]])
    if not rows:
        return []
    heads = ["run", "class a", "class b", "clips", "a as b", "b as a"]
    if len(runs) == 1:
        heads, rows = heads[1:], [row[1:] for row in rows]
    return [element("h3", "Most confused"), table(heads, rows, sortable=True)]


def _text(text, x, y, name):
    return element("text", text, x=x, y=y, class_=name)
