"""What a reader of annotations gives: clips with labels, or an error meant for the user."""

import hashlib
import json
from dataclasses import dataclass

VIDEO_SUFFIXES = (".webm", ".mp4", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")


class DataError(ValueError):
    """A data set that cannot be used. Its text is meant for the user."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One annotated clip.

    Attributes:
        id: its name in the annotations.
        path: video file, or folder of frames.
        label: index into :attr:`DataSet.labels`.
        kind: ``"video"`` or ``"frames"``.
        group: scene, person, ... (format clips only).
        start: seconds from the start of the video where the clip begins (None: at its start).
        end: seconds where it ends (None: at the end of the video). A frame belongs to the clip that begins at or after
            ``start`` and before ``end``.
        frames: the same by number: (first, after last). The video may hold fewer.
    """

    id: str
    path: str
    label: int
    kind: str
    group: str | None = None
    start: float | None = None
    end: float | None = None
    frames: tuple[int, int] | None = None

    @property
    def place(self) -> str:
        """The path, and what part of it: no two different clips have the same."""
        if self.start is None and self.end is None:
            part = "" if self.frames is None or self.frames[0] == 0 else f" [frames {self.frames[0]}-{self.frames[1]}]"
        else:
            part = f" [{self.start or 0:.10g}-{'' if self.end is None else format(self.end, '.10g')} s]"
        return self.path + part


@dataclass(frozen=True)
class DataSet:
    """Training and validation clips, and the label texts in the data set's own index order."""

    train: list[Clip]
    validation: list[Clip]
    labels: list[str]

    def digest(self) -> str:
        """SHA-256 of the lists in their order: names, parts and labels of the clips, wherever their files lie."""
        rows = [
            [[clip.id, clip.start, clip.end, clip.frames, clip.label] for clip in clips]
            for clips in (self.train, self.validation)
        ]
        return hashlib.sha256(json.dumps([rows, self.labels]).encode()).hexdigest()
