"""Pictures of clips, motion and classes, as uint8 arrays (H, W, 3)."""

import dataclasses
import warnings

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

#: At most so many frames of a clip are shown, spread evenly, each about so many pixels wide and high.
FRAMES, SIDE = 8, 128
#: Classes that a chart of bars can name.
NAMED = 40
_GAP, _LINE, _DPI = 4, 17, 100
_BLUE, _GREY = "#1f6fb2", "#9a9a9a"


@dataclasses.dataclass(frozen=True)
class Row:
    """Part of a sheet: a picture, a caption of one or more lines above it, and a word to the left."""

    picture: np.ndarray
    caption: str = ""
    word: str = ""


def figure(width, height):
    """An empty matplotlib figure of so many pixels, which belongs to no window or session."""
    made = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(made)
    return made


def pixels(drawn):
    """A figure as uint8 (H, W, 3)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font does not have are shown as boxes
        drawn.canvas.draw()
    return np.asarray(drawn.canvas.buffer_rgba())[..., :3].copy()


def shown_frames(length):
    """Indices of the frames of a clip that a strip shows."""
    return np.round(np.linspace(0, length - 1, min(length, FRAMES))).astype(int)


def strip(frames, edge=None):
    """Frames side by side.

    Args:
        frames: uint8 (T, H, W, 3).
        edge: grey level of a thin line around each, or None.

    Returns:
        uint8 (H', W', 3); every pixel is repeated, or means of some pixels are taken, so that frames are about
        ``SIDE`` pixels high.
    """
    shown = [_about_side(frame) for frame in np.asarray(frames)[shown_frames(len(frames))]]
    if edge is not None:
        shown = [np.pad(frame[1:-1, 1:-1], ((1, 1), (1, 1), (0, 0)), constant_values=edge) for frame in shown]
    gap = np.full((shown[0].shape[0], _GAP, 3), 255, "uint8")
    return np.concatenate([part for frame in shown for part in (frame, gap)][:-1], axis=1)


def _about_side(frame):
    height, width, _ = frame.shape
    if height <= SIDE:
        times = max(SIDE // height, 1)
        return frame.repeat(times, 0).repeat(times, 1)
    by = -(-height // SIDE)
    rows, columns = height // by, max(width // by, 1)
    whole = frame[: rows * by, : columns * by].reshape(rows, by, columns, -1, 3)
    return np.round(whole.mean((1, 3), dtype="float32")).astype("uint8")


def sheet(rows, key=None, key_text=""):
    """Rows of pictures below one another, with their texts.

    Args:
        rows: list of :class:`Row`.
        key: picture to the right of the first row, or None.
        key_text: below the key.
    """
    left = _GAP + max(8 * len(row.word) for row in rows)
    captions = [len(row.caption.splitlines()) * _LINE + _GAP * bool(row.caption) for row in rows]
    tops = np.cumsum([_GAP, *(row.picture.shape[0] + above + _GAP for row, above in zip(rows, captions))])
    width = left + max(row.picture.shape[1] for row in rows) + _GAP
    beside = 0 if key is None else key.shape[1] + 4 * _GAP
    height = tops[-1] if key is None else max(tops[-1], captions[0] + key.shape[0] + 5 * _LINE)
    total = width + beside
    drawn = figure(total, height)

    def write(x, y, text, size=9.5, **options):
        # Labels are anybody's texts: a dollar sign is one.
        options = {"va": "top", "parse_math": False, "fontsize": size} | options
        drawn.text(x / total, 1 - y / height, text, **options)

    for row, top, above in zip(rows, tops, captions):
        for number, line in enumerate(row.caption.splitlines()):
            write(left, top + number * _LINE, shortened(line, total - left))
        write(_GAP, top + above + row.picture.shape[0] / 2, row.word, va="center")
    if key is not None:
        middle = total - _GAP - key.shape[1] / 2
        write(middle, tops[0] + captions[0] + key.shape[0] + _GAP, key_text, 8, ha="center")
    page = pixels(drawn)
    for row, top, above in zip(rows, tops, captions):
        _paste(page, row.picture, top + above, left)
    if key is not None:
        _paste(page, key, tops[0] + captions[0], total - _GAP - key.shape[1])
    return page


def _paste(page, picture, top, left):
    page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture


def shortened(text, width):
    """The beginning of a line that does not fit into so many pixels."""
    letters = max(int(width / 7.2), 8)
    return text if len(text) <= letters else text[: letters - 1] + "…"


def class_chart(labels, accuracies, title=""):
    """Accuracy of each class as bars, the best first; with their names where there are not too many.

    Args:
        labels: K texts. accuracies: K numbers in [0, 1], or None for a class without clips, which is left out.
    """
    known = sorted_classes(labels, accuracies)
    values = np.array([accuracy for _, accuracy in known])
    named = len(known) <= NAMED
    drawn = figure(900, 90 + 20 * len(known)) if named else figure(900, 400)
    axes = drawn.subplots()
    if named:
        axes.barh(range(len(known)), values, color=_BLUE, height=0.7)
        names = [shortened(label, 320) for label, _ in known]
        axes.set_yticks(range(len(known)), names, fontsize=9, parse_math=False)
        axes.set_ylim(len(known) - 0.4, -0.6)
        axes.set_xlim(0, 1)
    else:
        axes.bar(range(len(known)), values, color=_BLUE, width=1.0)
        axes.set_xlim(-0.5, len(known) - 0.5)
        axes.set_ylim(0, 1)
        axes.set_xlabel(f"the {len(known)} classes, the best first")
    mean = values.mean()
    (axes.axvline if named else axes.axhline)(mean, color=_GREY, linestyle="--", linewidth=1)
    percent = axes.xaxis if named else axes.yaxis
    percent.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title(f"{title}mean of the classes {mean:.1%}", fontsize=10, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    drawn.tight_layout()
    return pixels(drawn)


def sorted_classes(labels, accuracies):
    """[(label, accuracy)] of the classes that have clips, the best first."""
    known = [(label, accuracy) for label, accuracy in zip(labels, accuracies) if accuracy is not None]
    return sorted(known, key=lambda pair: -pair[1])
