"""Figures as text for people."""

_WORST = 10  # classes and pairs shown where there are many
_FIGURES = {"top1": "top-1", "top5": "top-5", "mean_class": "mean class accuracy", "loss": "loss"}


def first_lines(figures):
    """A line of figures, and one for each clip that was left out."""
    yield (
        f"top-1 {figures['top1']:.1%}, top-5 {figures['top5']:.1%}, mean class accuracy {figures['mean_class']:.1%}, "
        f"loss {figures['loss']:.3f} on {figures['clips']} clips"
    )
    for path, reason in figures["unreadable"].items():
        yield f"left out: {path}: {reason}"


def figure_lines(figures):
    """Figures with their intervals, classes and confused pairs, each line of text."""
    yield from columns(
        ["figure", "value", f"{figures['level']:.0%} interval"],
        [[text, _value(key, figures[key]), _interval(figures, key)] for key, text in _FIGURES.items()]
        + [["calibration error", f"{figures['calibration']['ece']:.1%}", ""]],
    )
    classes = sorted((row for row in figures["classes"] if row["clips"]), key=lambda row: row["accuracy"])
    shown = classes if len(classes) <= 2 * _WORST else classes[:_WORST]
    rest = "" if shown is classes else f", {len(shown)} of {len(classes)}"
    yield ""
    yield from columns(
        [f"classes, the worst first{rest}", "clips", "accuracy", "precision", "mostly taken for"],
        [
            [
                row["label"], str(row["clips"]), f"{row['accuracy']:.1%}",
                "-" if row["precision"] is None else f"{row['precision']:.1%}",
                f"{row['taken_for']} ({row['taken_for_clips']})" if row["taken_for"] else "",
            ]
            for row in shown
        ],
    )  # fmt: skip
    if figures["confused"]:
        yield ""
        yield from columns(
            ["most confused: a", "b", "clips", "a as b", "b as a"],
            [
                [pair["a"], pair["b"], str(pair["a_as_b"] + pair["b_as_a"]), str(pair["a_as_b"]), str(pair["b_as_a"])]
                for pair in figures["confused"][:_WORST]
            ],
        )


def several_lines(runs, ensemble, compared):
    """Several runs beside one another.

    Args:
        runs: list of (name, figures). ensemble: figures.
        compared: see :func:`keras_stss.evaluation.figures.comparisons`.
    """
    named = [*runs, ("all of them (mean of their probabilities)", ensemble)]
    keys = list(_FIGURES)
    yield from columns(
        ["run", *_FIGURES.values(), "calibration error", "clips"],
        [
            [name]
            + [f"{_value(key, figures[key])} {_interval(figures, key)}" for key in keys]
            + [f"{figures['calibration']['ece']:.1%}", str(figures["clips"])]
            for name, figures in named
        ],
    )
    yield ""
    yield from columns(
        ["top-1 against the first", "points", f"{ensemble['level']:.0%} interval", "only it", "only the first", "p"],
        [
            [
                row["run"], f"{100 * row['difference']:+.1f}",
                f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
                str(row["only_first"]), str(row["only_second"]), f"{row['p_value']:.2g}",
            ]
            for row in compared
        ],
    )  # fmt: skip


def _value(key, value):
    return f"{value:.3f}" if key == "loss" else f"{value:.1%}"


def _interval(figures, key):
    low, high = (_value(key, value).removesuffix("%") for value in figures["intervals"][key])
    return f"[{low}, {high}]"


def columns(head, rows):
    """Lines of a table: the first column and those with words to the left, figures to the right."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    is_text = [place == 0 or any(row[place][:1].isalpha() for row in rows) for place in range(len(head))]
    for row in (head, *rows):
        cells = [text.ljust(width) if left else text.rjust(width) for text, width, left in zip(row, widths, is_text)]
        yield "  ".join(cells).rstrip()
