"""What the model says, drawn over a frame: labels, bars of their probabilities, and how late it is."""

import functools
import logging
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from keras_stss.evaluation.predict import ranked

log = logging.getLogger(__name__)

#: Smaller pictures are drawn enlarged, so that letters can be read.
LEAST_SIDE = 240
_LINES_OF_A_PICTURE, _LEAST_LETTER, _LARGEST_LETTER = 22, 13, 40
_SHADE, _BAR, _OTHER_BAR, _WHITE, _GREY = (0, 0, 0, 150), (66, 165, 245, 235), (120, 144, 156, 215), "white", "#d0d0d0"
_BAR_LETTERS, _SHARE_LETTERS = 6, 3.2  # widths, in letters


class Overlay:
    """Draws results over frames.

    All pictures that it gives have one size, with even sides: that of the first frame, enlarged where it is small.
    Frames of another size are fitted into it.

    Args:
        labels: class names by index, in any script that a font of this machine has.
        top: how many of them to show.
    """

    def __init__(self, labels, top=3):
        self.labels, self.top, self.size = labels, top, None
        self._panel = self._of = None

    def __call__(self, picture, result):
        """The picture with a :class:`~keras_stss.live.watch.Result`, or without where that is None.

        Args:
            picture: uint8 (H, W, 3).

        Returns:
            uint8 (H', W', 3).
        """
        if self.size is None:
            height, width = picture.shape[:2]
            times = -(-LEAST_SIDE // min(height, width))
            self.size = tuple(side * times + side * times % 2 for side in (width, height))
        canvas = self._fitted(Image.fromarray(np.ascontiguousarray(picture)))
        if result is not None:
            if self._of is not result:
                self._panel, self._of = self._drawn(result), result
            canvas.paste(self._panel, (0, self.size[1] - self._panel.height), self._panel)
        return np.asarray(canvas)

    def _fitted(self, image):
        if image.size == self.size:
            return image
        share = min(goal / side for goal, side in zip(self.size, image.size))
        inner = tuple(min(max(round(side * share), 1), goal) for side, goal in zip(image.size, self.size))
        inner = tuple(goal if goal - side < 2 else side for side, goal in zip(inner, self.size))
        canvas = Image.new("RGB", self.size)
        canvas.paste(image.resize(inner), tuple((goal - side) // 2 for side, goal in zip(inner, self.size)))
        return canvas

    def _drawn(self, result):
        """The panel at the bottom."""
        letter = round(min(max(min(self.size) / _LINES_OF_A_PICTURE, _LEAST_LETTER), _LARGEST_LETTER))
        pad, line = letter // 2, round(letter * 1.45)
        best = ranked(result.logits, self.labels, self.top)
        late = "" if result.latency is None else f"{1000 * result.latency:.0f} ms"
        panel = Image.new("RGBA", (self.size[0], line * len(best) + 2 * pad), _SHADE)
        draw = ImageDraw.Draw(panel)
        bar, share = round(_BAR_LETTERS * letter), round(_SHARE_LETTERS * letter)
        for row, (label, probability) in enumerate(best):
            middle, left = pad + row * line + line // 2, pad
            color = _BAR if row == 0 else _OTHER_BAR
            long = max(round(bar * probability), 1) if probability >= 0 else 1  # no bar of what is no number
            draw.rectangle((left, middle - line // 3, left + long, middle + line // 3), fill=color)
            left += bar + pad
            draw.text((left + share, middle), f"{probability:.0%}", _WHITE, font_of("%", letter), anchor="rm")
            left += share + pad
            font = font_of(label, letter)
            beside = 0 if row else round(font_of("ms", letter).getlength(late)) + pad
            text = _shortened(label, font, self.size[0] - left - pad - beside)
            draw.text((left, middle), text, _WHITE if row == 0 else _GREY, font, anchor="lm")
        middle = pad + line // 2
        draw.text((self.size[0] - pad, middle), late, _GREY, font_of("ms", round(letter * 0.8)), anchor="rm")
        return panel


@functools.lru_cache(maxsize=1024)
def font_of(text, size):
    """A font that has all letters of a text: DejaVu Sans, which comes with matplotlib, or another one of the machine.

    Where there is none, that is logged once, and boxes stand for the letters.

    Args:
        size: in pixels.
    """
    needed = {ord(letter) for letter in text if letter.isprintable() and not letter.isspace()}
    own = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    found = own
    if needed - _letters(str(own)):
        found = next((path for path in _other_fonts() if not needed - _letters(path)), None)
        if found is None:
            log.warning("no font of this machine has all letters of %r: install one (Noto has all scripts)", text)
    return ImageFont.truetype(str(found or own), size)


@functools.cache
def _other_fonts():
    # Upright and of normal weight before others.
    plain = [font.style != "normal" or str(font.weight) not in ("400", "normal") for font in _entries()]
    return [font.fname for _, font in sorted(zip(plain, _entries()), key=lambda pair: pair[0])]


def _entries():
    # The last resort, which matplotlib brings, has a box for every letter of every script.
    return [font for font in font_manager.fontManager.ttflist if "LastResort" not in font.fname]


@functools.lru_cache(maxsize=64)
def _letters(path):
    """The codes of a font's letters."""
    try:
        return set(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return set()


def _shortened(text, font, width):
    """The beginning of a text that does not fit into so many pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
