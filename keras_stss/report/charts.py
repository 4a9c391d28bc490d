"""Charts as SVG that takes its colours from the page, so that it is readable in light and dark."""

import math
from typing import NamedTuple

from keras_stss.pages import COLORS, Markup, element

_WIDTH, _HEIGHT = 360, 216
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 24, 34
_MOST_POINTS = 400  # of a curve
_TO_MARK = 30  # points of a curve that are drawn as such


class Curve(NamedTuple):
    """A line.

    Attributes:
        points: list of (x, y), by rising x; those that are no number are left out.
        color: CSS colour.
        name: what a reader sees who points at it.
        is_dashed: whether it is drawn in thin dashes.
        ring: x of the point to mark, or None.
        band: list of (x, low, high) around the line.
        areas: of each point, from 0 to 1, where they mean something.
    """

    points: list
    color: str
    name: str = ""
    is_dashed: bool = False
    ring: float | None = None
    band: list = ()
    areas: list | None = None


def color_of(number):
    """The colour of a series, as CSS."""
    return COLORS[number % len(COLORS)]


def swatch(number):
    """A dot of a series' colour, before its name."""
    return element("i", class_="swatch", style=f"background: {color_of(number)}")


def chart(
    title, curves, x_title="", form="{:.4g}", x_form="{:.6g}", x_range=None, y_range=None, whole_x=False, diagonal=False
):
    """Curves over a common x.

    Args:
        title: text above.
        curves: list of :class:`Curve`.
        x_title: text below.
        form, x_form: how numbers at the axes are written.
        x_range, y_range: (low, high); None, or None for one of them: from the curves.
        whole_x: whether x has marks at whole numbers only.
        diagonal: whether y = x is drawn.

    Returns:
        Markup.
    """
    points = [(x, y) for curve in curves for x, y in _known(curve.points)]
    points += [(x, y) for curve in curves for x, *ends in curve.band for y in ends]
    low_x, high_x = _range([x for x, _ in points], x_range)
    low_y, high_y = _range([y for _, y in points], y_range)
    step = _step(low_y, high_y, 5)
    low_given, high_given = y_range or (None, None)
    # A free end lies at the next line of the grid.
    low_y = math.floor(low_y / step + 1e-9) * step if low_given is None else low_y
    high_y = math.ceil(high_y / step - 1e-9) * step if high_given is None else high_y
    x_ticks, y_ticks = _ticks(low_x, high_x, _step(low_x, high_x, 6, whole_x)), _ticks(low_y, high_y, step)

    def place(x, y):
        across = (x - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - _RIGHT)
        return _LEFT + across, _HEIGHT - _BOTTOM - (y - low_y) / (high_y - low_y) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(title, 0, 13, "t")]
    for y in y_ticks:
        level = place(low_x, y)[1]
        parts += [_line(_LEFT, level, _WIDTH - _RIGHT, level, "g"), _text(form.format(y), _LEFT - 6, level + 3.5, "e")]
    for x in x_ticks:
        parts.append(_text(x_form.format(x), place(x, low_y)[0], _HEIGHT - _BOTTOM + 15, "m"))
    parts.append(_text(x_title, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, "m"))
    if diagonal:
        parts.append(_line(*place(low_x, low_x), *place(high_x, high_x), "d"))
    parts += [_curve(curve, place) for curve in curves]
    return svg(_WIDTH, _HEIGHT, parts, title)


def svg(width, height, parts, title, class_="chart", fixed=False):
    """A picture of such a size in its own units; ``fixed``: pixels of the page, too."""
    size = {"width": width, "height": height} if fixed else {}
    box = f"0 0 {width} {height}"
    return element("svg", *parts, viewBox=box, class_=class_, role="img", aria_label=title, **size)


def _curve(curve, place):
    points = _thinned(_known(curve.points))
    parts = []
    if curve.band:
        edge = [(x, high) for x, _, high in curve.band] + [(x, low) for x, low, _ in reversed(curve.band)]
        parts.append(element("polygon", points=_path(edge, place), class_="b"))
    if len(points) > 1:
        parts.append(element("polyline", points=_path(points, place), class_="c dash" if curve.is_dashed else "c"))
    if (len(points) <= _TO_MARK and not curve.is_dashed) or len(points) == 1:
        areas = curve.areas if curve.areas and len(curve.areas) == len(points) else [None] * len(points)
        parts += [_dot(place(x, y), f"{curve.name} {x:.6g}: {y:.4g}", area) for (x, y), area in zip(points, areas)]
    parts += [_ring(place(x, y)) for x, y in points if x == curve.ring]
    return element("g", element("title", curve.name), *parts, style=f"color: {curve.color}")


def _known(points):
    return [(x, y) for x, y in points if y is not None and math.isfinite(x) and math.isfinite(y)]


def _thinned(points):
    """Some hundred of many points, the last one among them."""
    step = -(-len(points) // _MOST_POINTS) or 1
    return points[::step] + (points[-1:] if (len(points) - 1) % step else [])


def _range(values, given):
    low, high = given or (None, None)
    values = values or [0.0, 1.0]
    low = min(values) if low is None else low
    high = max(values) if high is None else high
    if high - low > 1e-12 * max(abs(low), abs(high), 1e-12):
        return low, high
    return (low - 0.5, high + 0.5) if low != 0 else (0.0, 1.0)


def _step(low, high, most, whole=False):
    """A round number that goes about ``most`` times into the range."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return max(math.ceil(step), 1) if whole else step


def _ticks(low, high, step):
    """The multiples of a step from ``low`` to ``high``."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)] or [low]


def _path(points, place):
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))


def _line(x1, y1, x2, y2, name):
    return element("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=name)


def _dot(place, title, area):
    radius = 2.6 if area is None else 2 + 5 * math.sqrt(area)
    dot = {"cx": f"{place[0]:.1f}", "cy": f"{place[1]:.1f}", "r": f"{radius:.1f}"}
    return element("circle", element("title", title), class_="p" if area is None else "p area", **dot)


def _ring(place):
    return element("circle", cx=f"{place[0]:.1f}", cy=f"{place[1]:.1f}", r="6", class_="r")


def _text(text, x, y, name):
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=name) if text != "" else Markup()
