"""Clips that play on the page, with what the runs say of them and what a network sees in them."""

import numpy as np

from keras_stss.config import ConfigError
from keras_stss.data.annotations import DataError
from keras_stss.data.decode import ClipError, read_clip
from keras_stss.data.pipeline import read_view
from keras_stss.data.transcode import shrunk
from keras_stss.data.video import describe
from keras_stss.data.write_video import encode_video
from keras_stss.models import load_model
from keras_stss.pages import details, element, escape, gallery, label, section, video
from keras_stss.report.charts import color_of, swatch
from keras_stss.report.choose import disputed, mistakes, samples, scored_by_all
from keras_stss.report.runs import clips_of
from keras_stss.visualize import VisualizeError, look_at, overlay_frames
from keras_stss.visualize.page import motion_note

_FRAMES, _SIDE, _LEAST, _CRF = 32, 160, 128, 26  # of a clip's video; pixels of its short side
_RATE = 12  # frames a second of what does not say its own
_SLOW = 3  # frames a second of overlays
_TOP, _SHOWN = 5, {1: 5, 2: 3}  # classes told of each run, and seen at once of so many runs; of more the first alone
_LEAST_SHARE = 0.005
_WRONG, _MIXED, _OTHERS = "Wrong predictions worth a look", "Where the runs differ", "Sample clips"


class Clips:
    """The sections with clips.

    Args:
        runs: list of :class:`keras_stss.report.runs.ReportedRun`.
        protocol: whose scores count.
        count: clips of a section.
        overlays: clips that get a video of what the first run's network sees.

    Attributes:
        shown: number of clips on the page.
        failed: {place of a clip: why it is not on the page}.
    """

    def __init__(self, runs, protocol, count, overlays):
        self.count, self.shown, self.failed = count, 0, {}
        self._having = [(number, run) for number, run in enumerate(runs) if protocol in run.scores]
        parts = [(run.scores[protocol], clips_of(run, run.scores[protocol])) for _, run in self._having]
        self._scored = scored_by_all(parts) if parts and count else None
        self._labels, self._total = runs[0].labels, len(parts[0][0].clips) if parts else 0
        self._left, self._model = overlays, None

    def sections(self):
        """List of sections; none where there are no scores."""
        if not self._having or not self.count:
            return []
        if self._scored is None:
            line = f"None of the {self._total:,} scored clips is in the data set now: data.root=… says where it is."
            return [section("Clips", element("p", line))]
        wrong = mistakes(self._scored, self.count)
        mixed = disputed(self._scored, self.count) if len(self._having) > 1 else []
        others = samples(self._scored, self.count, without={*wrong, *mixed})
        who = "all runs" if len(self._having) > 1 else "the model"
        listed = [
            (_WRONG, wrong, f"Clips that {who} took for something else, the surest first; at most two of a kind."),
            (_MIXED, mixed, "Clips that some runs have right and others wrong, the widest gap first."),
            (_OTHERS, others, "Others, of as many classes as there is room for, right and wrong as they come."),
        ]
        found = [self._section(*each) for each in listed if each[1]]
        if self.shown:
            return found
        (place, why), more = next(iter(self.failed.items())), len(self.failed) - 1
        rest = f", and {more} more" if more else ""
        line = f"No clip can be read: {place}: {why}{rest}. data.root=… says where they are now."
        return [section("Clips", element("p", line))]

    def _section(self, heading, places, note):
        cards, lines = [], []
        for place in places:
            clip = self._scored.clips[place]
            try:
                cards.append(self._card(clip, place))
            except (ClipError, DataError, OSError) as error:
                self.failed[clip.place] = str(error)
                lines.append(element("p", f"not shown: {clip.place}: {error}", class_="small bad"))
        self.shown += len(cards)
        how_many = f" {len(cards):,} of {self._total:,} clips."
        return section(heading, gallery(*cards, least="13.5rem"), *lines, note=note + how_many)

    def _card(self, clip, place):
        """A clip with what is said of it."""
        frames, rate = shown_frames(clip)
        words = [label(self._labels[self._scored.label[place]]), *self._said(place)]
        played = video(encode_video(frames, rate, _CRF), escape(words), poster=frames[len(frames) // 2])
        name = element("div", f"clip {self._scored.names[place]}", class_="small soft name")
        return element("div", played, name, self._overlay(clip), class_="card")

    def _said(self, place):
        """The most probable classes, by each run; those of next to nothing only where there is no other."""
        found = []
        for row, (number, _) in enumerate(self._having):
            probabilities = self._scored.probabilities[row, place]
            first, *others = np.argsort(-probabilities, kind="stable")[:_TOP]
            dot = swatch(number) if len(self._having) > 1 else None
            lines = [self._guess(first, probabilities[first], place, number, dot)]
            lines += [
                self._guess(each, probabilities[each], place, number)
                for each in others
                if probabilities[each] >= _LEAST_SHARE
            ]
            found.append(lines)
        shown = _SHOWN.get(len(found), 1)
        lists = [element("ol", *lines[:shown], class_="guesses") for lines in found]
        if any(len(lines) > shown for lines in found):
            lists.append(details(f"top-{_TOP}", *(element("ol", *lines, class_="guesses") for lines in found)))
        return lists

    def _guess(self, index, probability, place, number, dot=None):
        is_right = index == self._scored.label[place]
        fill = element("i", style=f"width: {100 * probability:.0f}%; background: {color_of(number)}")
        text = [dot, label(self._labels[index]), " ✓" if is_right else None]
        share = element("b", f"{probability:.0%}")
        return element(
            "li", element("span", *text), share, element("span", fill, class_="bar"), class_="hit" if is_right else None
        )

    def _overlay(self, clip):
        """What the first run's network sees in the clip, as a video under a heading to open; nothing for most."""
        if self._left <= 0:
            return None
        run = self._having[0][1]
        try:
            if self._model is None:
                self._model = load_model(run.folder)
            member = 0 if run.is_ensemble else None
            truth = self._labels[clip.label]
            seen = look_at(self._model, read_view(clip, run.config.data), self._labels, truth, member=member)
            frames = overlay_frames(seen)
        except (ConfigError, VisualizeError) as error:
            run.notes.append(f"no pictures of what {run.name} sees: {error}")
            self._left = 0
            return None
        self._left -= 1
        who = "the network" if len(self._having) == 1 else run.name
        who = f"the first network of {run.name}" if run.is_ensemble else who
        shown = video(encode_video(frames, _SLOW, _CRF), motion_note(seen), poster=frames[0])
        return details(f"what {who} sees", shown)


def shown_frames(clip):
    """Frames of a clip for the page, and how many a second they are.

    Args:
        clip: :class:`keras_stss.data.annotations.Clip`.

    Returns:
        (uint8 (T, H, W, 3) with T at most 32, rate).

    Raises:
        ClipError: where it cannot be read.
    """
    counted = []

    def choose(count):
        counted.append(count)
        return np.round(np.linspace(0, count - 1, min(count, _FRAMES))).astype(int)

    frames = read_clip(clip, choose)
    rate = (describe(clip.path)["rate"] if clip.kind == "video" else None) or _RATE
    frames = np.stack([shrunk(frame, _SIDE) for frame in frames])
    # What is far smaller than it is shown would lose its colours in the file.
    times = -(-_LEAST // min(frames.shape[1:3]))
    return frames.repeat(times, axis=1).repeat(times, axis=2), max(1.0, rate * len(frames) / counted[-1])
