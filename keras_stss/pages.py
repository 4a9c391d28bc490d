"""What the project's HTML pages have in common: one file each, that needs no server, no network and no other file.

A page reads well in light and dark, on a phone and on paper. Text is escaped, but for :class:`Markup`.
"""

import base64
import html
import io
import itertools
import re
import string
from typing import NamedTuple

import numpy as np

_TAG = re.compile("<[^>]*>")
_SURROGATE = re.compile("[\ud800-\udfff]")
# What HTML forbids in text: control characters, but for tab, line feed and carriage return.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
_NUMBER = re.compile(r"[-+−]?[\d.,]+(e[-+]\d+)?\s?(%|s|ms|M|G|k|MB|GB|×)?(\s*[\[±].*)?$")
_KINDS = ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp"))
_SECTIONS_TO_LIST = 3

#: CSS colours of series, readable on light and on dark ground: ``var(--c0)`` and so on; more series begin anew.
COLORS = tuple(f"var(--c{number})" for number in range(8))

#: Inline script for ``page``: a click on a head of ``table(…, sortable=True)`` sorts by it, a second one backwards.
SORTING = """
document.querySelectorAll("table.sortable thead th").forEach(function (head) {
  var button = document.createElement("button");
  button.type = "button";
  while (head.firstChild) button.appendChild(head.firstChild);
  head.appendChild(button);
  button.addEventListener("click", function () {
    var body = head.closest("table").tBodies[0], place = head.cellIndex;
    var down = head.getAttribute("aria-sort") === "descending";
    var first = head.classList.contains("n") ? "descending" : "ascending";
    var order = head.hasAttribute("aria-sort") ? (down ? "ascending" : "descending") : first;
    var key = function (row) {
      var cell = row.cells[place], keyed = cell.querySelector("[data-key]");
      var text = keyed ? keyed.dataset.key : cell.textContent.trim();
      var number = parseFloat(text.replace(/−/g, "-").replace(/,/g, ""));
      return keyed || head.classList.contains("n") ? (isNaN(number) ? -Infinity : number) : text;
    };
    var rows = Array.from(body.rows).map(function (row) { return [key(row), row]; });
    rows.sort(function (a, b) {
      var sign = typeof a[0] === "number" ? a[0] - b[0] || 0 : a[0].localeCompare(b[0]);
      return order === "ascending" ? sign : -sign;
    });
    head.parentNode.querySelectorAll("th").forEach(function (each) { each.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", order);
    rows.forEach(function (row) { body.appendChild(row[1]); });
  });
});
"""

#: Inline script for ``page``: videos play at a click or Enter, without the controls that would cover small ones.
PLAYING = """
document.querySelectorAll("figure.clip video").forEach(function (video) {
  var screen = video.parentNode;
  video.controls = false;
  video.tabIndex = 0;
  screen.classList.add("paused");
  var toggle = function () { if (video.paused) video.play(); else video.pause(); };
  screen.addEventListener("click", toggle);
  video.addEventListener("keydown", function (event) {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); }
  });
  video.addEventListener("play", function () { screen.classList.remove("paused"); });
  video.addEventListener("pause", function () { screen.classList.add("paused"); });
});
"""

# Nothing from outside, and the browser sees to it.
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_LIGHT = """--ink: #1d232a; --soft: #5c6670; --line: #dde2e7; --ground: #fff; --raised: #f5f7f9; --link: #1a5fb4;
  --bad: #b3261e; --c0: #1f6fb2; --c1: #d1660f; --c2: #2a8a4a; --c3: #b0307a; --c4: #6a51b8; --c5: #00838f;
  --c6: #8a6d00; --c7: #6b6b6b"""
_DARK = """--ink: #e4e8ec; --soft: #a3adb8; --line: #323a43; --ground: #14181d; --raised: #1c2229; --link: #82b4f0;
  --bad: #ff8a80; --c0: #6cb2f0; --c1: #f59a4c; --c2: #66c285; --c3: #ec7fbc; --c4: #a995f0; --c5: #4fc4cf;
  --c6: #d4b545; --c7: #a8a8a8"""

_STYLE = string.Template("""
:root { color-scheme: light dark; $light }
@media (prefers-color-scheme: dark) { :root { $dark } }
@media print { :root { color-scheme: light; $light } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 3.2rem }
body { margin: 0 auto; max-width: 74rem; padding: 0 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 1.6rem 0 .2rem; letter-spacing: -.01em }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 .5rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem }
p { margin: .4rem 0 }
a { color: var(--link) }
h1, h2, h3, p, li, td, th, dd, figcaption, summary { unicode-bidi: plaintext; text-align: left }
section { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: 1.3rem }
.soft, .note, figcaption { color: var(--soft) }
.note, figcaption, .small { font-size: .87rem }
.note { max-width: 46rem }
.bad { color: var(--bad) }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
code.line { background: var(--raised); border-radius: 4px; padding: .1em .35em }
nav { position: sticky; top: 0; z-index: 2; background: var(--ground); display: flex; gap: 1.1rem; overflow-x: auto;
  padding: .6rem 0; margin-top: .8rem; white-space: nowrap; font-size: .87rem; scrollbar-width: none }
nav a { text-decoration: none }
nav a:hover { text-decoration: underline }
.wide { overflow-x: auto; max-width: 100%; margin: .6rem 0 }
table { border-collapse: collapse; font-size: .93rem }
th, td { padding: .28rem 1.1rem .28rem 0; vertical-align: baseline; overflow-wrap: normal }
th { font-weight: 600 }
td.long { min-width: 11rem; overflow-wrap: anywhere }
thead th { color: var(--soft); font-weight: 500; font-size: .87rem; border-bottom: 1px solid var(--line);
  vertical-align: bottom }
tbody tr + tr > * { border-top: 1px solid color-mix(in srgb, var(--line) 55%, transparent) }
.n, thead th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
th > button { all: unset; cursor: pointer }
th > button:focus-visible { outline: 2px solid var(--link) }
th[aria-sort] > button::after { content: " ▾" }
th[aria-sort=ascending] > button::after { content: " ▴" }
.beside { display: grid; grid-template-columns: minmax(0, 24rem) minmax(0, 1fr); gap: 1.5rem; align-items: center }
dl.pairs { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: .6rem 0 }
dl.pairs dt { color: var(--soft) }
dl.pairs dd { margin: 0; font-variant-numeric: tabular-nums }
figure { margin: 0 }
figcaption { margin-top: .3rem; line-height: 1.4 }
img, video, svg { max-width: 100%; height: auto; display: block; border-radius: 2px }
video { width: 100%; background: var(--raised) }
.screen { display: block; position: relative }
.screen.paused { cursor: pointer }
.screen.paused::after { content: "▶"; position: absolute; left: .5rem; bottom: .5rem; width: 1.9rem; height: 1.9rem;
  border-radius: 50%; background: rgb(0 0 0 / .55); color: #fff; font: .8rem/1.9rem sans-serif; text-align: center;
  padding-left: .1rem; pointer-events: none }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(var(--least, 15rem), 100%), 1fr));
  gap: 1.2rem; margin: .8rem 0; align-items: start }
.gallery img { width: 100% }
.pixels { image-rendering: pixelated }
details { margin: .5rem 0 }
summary { cursor: pointer }
@media (max-width: 600px) {
  body { padding: 0 1rem 3rem }
  th, td { padding-right: .8rem }
  td:not(.n) { min-width: 6.5rem }
  td.long { min-width: 12rem }
  h1 { font-size: 1.35rem }
  .beside { grid-template-columns: minmax(0, 1fr) }
  dl.pairs { grid-template-columns: 1fr; gap: 0 }
  dl.pairs dd { margin-bottom: .4rem }
}
@media print {
  nav, .screen::after { display: none }
  html { -webkit-print-color-adjust: exact; print-color-adjust: exact }
  body { max-width: none; font-size: 10pt }
  figure, tr { break-inside: avoid }
  h2, h3, .note { break-after: avoid }
  .wide { overflow: visible }
  details::details-content { content-visibility: visible }
}
""").substitute(light=_LIGHT, dark=_DARK)


class Markup(str):
    """Text that is HTML already. Adding two gives another; adding other text escapes that."""

    def __add__(self, other):
        return Markup(str.__add__(self, escape(other)))


class Section(NamedTuple):
    """Part of a page, as :func:`section` makes it."""

    heading: str
    body: Markup
    note: str


def escape(value):
    """Any value as :class:`Markup`: Markup as it is; a list's items one after another; None as nothing."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup()
    if isinstance(value, (list, tuple)):
        return Markup("".join(escape(each) for each in value))
    # File names may hold what is no text.
    text = _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value))
    return Markup(html.escape(_FORBIDDEN.sub("\ufffd", text)))


def element(name, *parts, **attributes):
    """An HTML element.

    Args:
        name: of the tag.
        parts: what is inside; text is escaped.
        attributes: their values are escaped; ``class_`` stands for class, other ``_`` for ``-``; True is an attribute
            without a value; None and False leave it out.
    """
    texts = [_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()]
    end = "" if name in ("img", "br", "input", "meta", "wbr") else f"{escape(parts)}</{name}>"
    return Markup(f"<{name}{''.join(texts)}>{end}")


def _attribute(key, value):
    if value is None or value is False:
        return ""
    return f" {key}" if value is True else f' {key}="{escape(value)}"'


def page(title, sections, subtitle="", script="", style="", contents=True):
    """A whole page.

    Args:
        title: text.
        sections: list of :class:`Section`; None among them counts for nothing.
        subtitle: text or Markup below the title.
        script: JavaScript that stands in the page, for example :data:`SORTING`; without it the page must work, too.
        style: CSS that comes after that of all pages.
        contents: whether links lead to the sections, where there are more than three.

    Returns:
        The HTML text, to be written as UTF-8.
    """
    sections = [each for each in sections if each is not None]
    names = _anchors([each.heading for each in sections])
    body = [element("h1", title), element("div", subtitle, class_="soft") if subtitle else Markup()]
    if contents and len(sections) > _SECTIONS_TO_LIST:
        links = [element("a", each.heading, href=f"#{name}") for name, each in zip(names, sections)]
        body.append(element("nav", *links, aria_label="Sections"))
    for name, each in zip(names, sections):
        note = element("p", each.note, class_="note") if each.note else Markup()
        body.append(element("section", element("h2", each.heading), note, each.body, id=name))
    # The end of the element is the only text that a script must not hold.
    script = "<script>" + re.sub("</(script)", r"<\\/\1", script, flags=re.IGNORECASE) + "</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style></head><body>\n"
        + "\n".join(body)
        + f"\n{script}</body></html>\n"
    )


def section(heading, *parts, note=""):
    """Part of a page under a heading.

    Args:
        heading: text.
        parts: Markup; text becomes a paragraph; a list its items one after another; None counts for nothing.
        note: a sentence below the heading, text or Markup.
    """
    return Section(heading, escape([_paragraph(part) for part in parts]), note)


def _paragraph(part):
    return element("p", part) if isinstance(part, str) and not isinstance(part, Markup) else part


def table(headers, rows, sortable=False):
    """A table, which scrolls by itself where it is wider than the page.

    Args:
        headers: texts; none for a table without a head.
        rows: lists of cells: text, Markup, None, or numbers, shown as ``str`` gives them.
        sortable: whether :data:`SORTING` may sort it: by the numbers or texts of a column, or by the number that an
            element inside of a cell has as ``data-key``.

    Columns whose cells are all numbers, as numbers or as text (``12.3%``), stand to the right.
    """
    rows = [list(row) for row in rows]
    width = max([len(headers), *map(len, rows)])
    right = [_is_column_of_numbers([row[place] for row in rows if place < len(row)]) for place in range(width)]
    cells = [_row("td", row, right) for row in rows]
    head = element("thead", _row("th", headers, right)) if headers else Markup()
    name = "sortable" if sortable else None
    return element("div", element("table", head, element("tbody", *cells), class_=name), class_="wide")


def _row(tag, cells, right):
    return element("tr", *(element(tag, cell, class_=_cell_class(cell, is_n)) for cell, is_n in zip(cells, right)))


def _cell_class(cell, is_number):
    if is_number:
        return "n"
    return "long" if not isinstance(cell, Markup) and len(str(cell)) > 40 else None


def _is_column_of_numbers(cells):
    if any(isinstance(cell, Markup) and "data-key=" in cell for cell in cells):
        return False  # drawings
    texts = [_TAG.sub("", cell) if isinstance(cell, Markup) else str(cell) for cell in cells if cell is not None]
    shown = [text.strip() for text in texts]
    shown = [text for text in shown if text not in ("", "-", "–", "—")]
    return bool(shown) and all(_NUMBER.match(text) for text in shown)


def pairs(rows):
    """Names and values beside one another: list of (text, text or Markup)."""
    return element("dl", *(element("dt", name) + element("dd", value) for name, value in rows), class_="pairs")


def gallery(*parts, least="15rem"):
    """Parts beside one another, as many as there is room for, each at least so wide."""
    return element("div", *parts, class_="gallery", style=f"--least: {least}")


def beside(first, second):
    """Two parts beside one another; on a phone the second below the first."""
    return element("div", element("div", first), element("div", second), class_="beside")


def details(summary, *parts, is_open=False):
    """Parts that show once the reader opens them."""
    return element("details", element("summary", summary), *map(_paragraph, parts), open=is_open)


def command(line):
    """A line to type."""
    return element("code", line, class_="line")


def label(text):
    """A class's name inside of other text, whichever way its script runs."""
    return element("bdi", text)


def picture(png_or_array, caption="", alt="", pixels=False):
    """A picture with its caption.

    Args:
        png_or_array: the bytes of a PNG, JPEG, GIF or WebP file, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).
        caption: text or Markup.
        alt: what the picture shows, in words; empty where the caption says it.
        pixels: whether each pixel stays a square where it is enlarged.
    """
    size = {}
    if not isinstance(png_or_array, bytes):
        size = {"height": png_or_array.shape[0], "width": png_or_array.shape[1]}
    uri = data_uri(picture_bytes(png_or_array))
    name = "pixels" if pixels else None
    return _figure(element("img", src=uri, alt=alt, class_=name, **size), caption)


def video(mp4_bytes, caption="", poster=None):
    """A video with its controls and its caption. The browser decodes nothing of it before the reader plays it.

    Args:
        mp4_bytes: as :func:`keras_stss.data.write_video.encode_video` gives them.
        caption: text or Markup.
        poster: what is seen before, as ``png_or_array`` in :func:`picture`; an array becomes a JPEG file.
    """
    given = {"controls": True, "loop": True, "muted": True, "playsinline": True, "preload": "none"}
    if poster is not None:
        if not isinstance(poster, bytes):
            given |= {"height": poster.shape[0], "width": poster.shape[1]}
            poster = picture_bytes(poster, "jpeg")
        given["poster"] = data_uri(poster)
    uri = "data:video/mp4;base64," + base64.b64encode(mp4_bytes).decode()
    screen = element("span", element("video", src=uri, **given), class_="screen")
    return _figure(screen, caption, class_="clip")


def _figure(inside, caption, **attributes):
    return element("figure", inside, element("figcaption", caption) if caption else Markup(), **attributes)


def data_uri(content):
    """The bytes of a PNG, JPEG, GIF or WebP file as an address."""
    kind = next((kind for start, kind in _KINDS if content.startswith(start)), None)
    if kind is None:
        raise ValueError(f"a picture must be PNG, JPEG, GIF or WebP. Received: {content[:8]!r}…")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_bytes(picture, kind="png"):
    """A file's bytes of a uint8 array (H, W), (H, W, 3) or (H, W, 4); bytes stay as they are.

    Args:
        kind: "png", or "jpeg", which is smaller for photographs and has no transparency.
    """
    if isinstance(picture, bytes):
        return picture
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,), (4,)):
        raise ValueError(
            f"a picture must be uint8 (H, W), (H, W, 3) or (H, W, 4). Received: {picture.dtype} {picture.shape}"
        )
    from matplotlib.image import imsave

    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=-1)
    file = io.BytesIO()
    imsave(file, picture, format=kind, pil_kwargs={"quality": 82} if kind == "jpeg" else {"optimize": True})
    return file.getvalue()


def _anchors(headings):
    """A different name for each heading."""
    names = []
    for heading in headings:
        plain = re.sub(r"\W+", "-", heading.lower()).strip("-") or "section"
        different = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(1)))
        names.append(next(name for name in different if name not in names))
    return names
