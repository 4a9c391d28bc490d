"""FineGym: lists of elements for Gym99 and Gym288, and one JSON of the times of events and actions in whole videos."""

import functools
import logging
import re

from keras_stss.data.annotations import files
from keras_stss.data.annotations.data_set import Clip, DataSet
from keras_stss.data.annotations.lists import IdList, warn_of_both
from keras_stss.data.annotations.places import VideoIndex

logger = logging.getLogger(__name__)

_ELEMENT = re.compile(r"(?P<video>[\w-]+)_(?P<event>E_\d+_\d+)_(?P<action>A_\d+_\d+)")
_CATEGORY = re.compile(r"(?:clabel\s*:)?\s*(\d+)\s*[;:,\s]\s*(?:\w+\s*:\s*\d+\s*;\s*)*(.+)", re.IGNORECASE)


def annotation_files(data, root):
    """(times, train, validation) paths."""
    gym, versions = data.format, ("_v1.1", "_v1.0", "")
    names = {
        "annotations": [f"finegym_annotation_info{version}.json" for version in versions],
        "train": [f"{gym}_train{element}{version}.txt" for element in ("_element", "") for version in versions],
        "validation": [f"{gym}_val{element}{version}.txt" for element in ("_element", "") for version in versions],
    }
    return [files.find_file(data, root, part, there) for part, there in names.items()]


def read(data, root):
    """The :class:`DataSet` of the config's data section.

    A clip is taken from the first of these that is there: a video of the action alone, of its event, or the whole one.
    """
    times_path, *list_paths = annotation_files(data, root)
    labels = _labels(data, root)
    faults = files.Faults()
    times = _Times(times_path, faults)
    lists = [_read_list(path, len(labels), times, faults) for path in list_paths]
    faults.raise_any()
    lists = [entries.checked() for entries in lists]
    warn_of_both(*lists)
    found = VideoIndex(data, root).find({clip_id: _stems(clip_id) for entries in lists for clip_id in entries})
    clips = [
        [_clip(clip_id, *found[clip_id], label, *span) for clip_id, (label, *span) in entries.items()]
        for entries in lists
    ]
    return DataSet(*clips, labels)


def _stems(clip_id):
    parts = _ELEMENT.fullmatch(clip_id)
    return [clip_id, f"{parts['video']}_{parts['event']}", parts["video"]]


def _clip(clip_id, path, stem, label, event, start, end):
    """``start`` and ``end`` count from the start of the event, as in the annotations."""
    if stem == clip_id:
        return Clip(clip_id, path, label, "video")
    offset = 0.0 if "_E_" in stem else event
    return Clip(clip_id, path, label, "video", start=round(offset + start, 3), end=round(offset + end, 3))


def _labels(data, root):
    path = files.find_optional(data, root, "labels", [f"{data.format}_categories.txt"])
    if path is None:
        count = int(data.format.removeprefix("gym"))
        logger.warning("no %s_categories.txt: the %d classes go by their numbers", data.format, count)
        return [str(number) for number in range(count)]
    texts, faults = {}, files.Faults()
    for line, text in files.read_lines(path):
        match = _CATEGORY.fullmatch(files.tidy(text))
        number = files.whole_number(match[1]) if match else None
        if number is None:
            faults.add(path, line, f"wanted 'Clabel: number; ...; text'. Received: {text[:80]!r}")
        elif number in texts:
            faults.add(path, line, f"class {number} twice: {texts[number]!r} and {match[2]!r}")
        else:
            texts[number] = match[2]
    return files.in_order(path, texts, faults)


class _Times:
    """The times of every event and action: {video: {event: {timestamps, segments: {action: {timestamps}}}}}."""

    def __init__(self, path, faults):
        self.path, self.faults = path, faults
        self.videos, self.text = files.load_json(path, dict, "an object {video: {event: ...}}")
        self._line_of = functools.cache(functools.partial(files.line_of, self.text))  # the text is long

    def span(self, video, event, action):
        """(start of the event, start and end of the action from there) in seconds; a text where there is none."""
        events = self.videos.get(video)
        if not isinstance(events, dict) or not isinstance(events.get(event), dict):
            return f"{self.path} has no event {event} of video {video}"
        segments = events[event].get("segments")
        if not isinstance(segments, dict) or not isinstance(segments.get(action), dict):
            return f"{self.path} has no action {action} in event {event} of video {video}"
        outer, inner = _first_and_last(events[event]), _first_and_last(segments[action])
        if outer is None or inner is None:
            line = self._line_of(video)
            return f"no good timestamps of {event}, {action} in video {video}, {self.path}:{line} and on"
        return outer[0], *inner


def _first_and_last(entry):
    """The first start and the last end of timestamps [[start, end], ...]: a vault is told in three stages."""
    pairs = entry.get("timestamps")
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return None
    numbers = [files.seconds(value) for pair in pairs for value in pair]
    return (numbers[0], numbers[-1]) if None not in numbers and numbers[0] < numbers[-1] else None


def _read_list(path, classes, times, faults):
    entries = IdList(path, faults)
    for line, text in files.read_lines(path):
        clip_id, *number = text.rsplit(None, 1)
        label = files.whole_number(number[0]) if number else None
        parts = _ELEMENT.fullmatch(clip_id)
        if parts is None or label is None:
            faults.add(path, line, f"wanted video_E_start_end_A_start_end label. Received: {text[:80]!r}")
        elif label >= classes:
            entries.refuse(line, clip_id, f"unknown label {label} ({clip_id}): there are {classes}, from 0")
        elif isinstance(span := times.span(parts["video"], parts["event"], parts["action"]), str):
            entries.refuse(line, clip_id, span)
        else:
            entries.add(line, clip_id, (label, *span))
    return entries
