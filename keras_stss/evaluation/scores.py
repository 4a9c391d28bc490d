"""The scores of a set of clips in files: what a model said of each clip, and what that depends on."""

import csv
import dataclasses
import hashlib
import json
import logging
import zipfile
from pathlib import Path

import numpy as np

from keras_stss.data.annotations import DataError
from keras_stss.evaluation.metrics import is_among_top, mean_scores, softmax

log = logging.getLogger(__name__)

#: What of the data section decides which pixels the model sees.
DATA_KEYS = ("format", "root", "videos", "frames", "sampling", "resize", "crop")
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model said of clips.

    Args:
        clips: (N,) names of the clips, see :func:`clip_names`.
        index: (N,) their places in the list of the clips, in rising order.
        label: (N,) their classes.
        logits: (N, K); their softmax is what the protocol averages to.
        unreadable: {path: reason} of clips that are left out.
        depends: dictionary for JSON of what the scores depend on.
    """

    clips: np.ndarray
    index: np.ndarray
    label: np.ndarray
    logits: np.ndarray
    unreadable: dict
    depends: dict

    @classmethod
    def of(cls, clips, result, depends):
        """From clips and what :meth:`keras_stss.evaluation.evaluate.Scorer.score` gives for them."""
        index, logits, unreadable = result
        order = np.argsort(index, kind="stable")
        index, names = np.asarray(index)[order], clip_names(clips)
        return cls(
            np.asarray([names[place] for place in index], np.str_),
            index,
            np.asarray([clips[place].label for place in index], np.int64),
            np.asarray(logits, np.float32)[order],
            unreadable,
            depends,
        )

    def save(self, path):
        """Writes an npz file: clip, index, label, logits, and unreadable and depends as JSON text."""
        texts = {"unreadable": json.dumps(self.unreadable), "depends": json.dumps(self.depends)}
        np.savez(path, clip=self.clips, index=self.index, label=self.label, logits=self.logits, **texts)

    @classmethod
    def load(cls, path):
        """From such a file; None where there is none, or where it is damaged, which is logged."""
        try:
            with np.load(path) as file:
                texts = [json.loads(str(file[name])) for name in ("unreadable", "depends")]
                return cls(*(file[name] for name in ("clip", "index", "label", "logits")), *texts)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            log.warning("%s cannot be read, so it counts for nothing: %s", path, error)
            return None

    def save_csv(self, path, labels):
        """Writes a CSV file, a line a clip: its name, label and prediction, and the five most probable labels."""
        count = min(5, len(labels))
        probabilities, right = softmax(self.logits), is_among_top(self.logits, self.label, 1)
        places = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
        tops = [name for number in range(1, count + 1) for name in (f"top{number}", f"probability{number}")]
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["clip", "label", "predicted", "right", *tops])
            for clip, label, is_right, row, best in zip(self.clips, self.label, right, probabilities, places):
                pairs = [text for place in best for text in (labels[place], f"{row[place]:.6g}")]
                writer.writerow([clip, labels[label], pairs[0], int(is_right), *pairs])


def clip_names(clips):
    """Names of clips, the same wherever the data set lies: the one in the annotations, and the part of the video.

    Raises:
        DataError: where two clips have one name.
    """
    names = [clip.id + clip.place[len(clip.path) :] for clip in clips]
    if len(set(names)) < len(names):
        seen = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise DataError(f"two clips have the name {twice!r}, so their scores cannot be told apart")
    return names


def what_scores_depend_on(model, clips, data, protocol):
    """A dictionary for JSON, the same only where the scores are.

    Args:
        model: path of the model's file.
        clips: list of :class:`keras_stss.data.annotations.Clip`.
        data: :class:`keras_stss.config.DataConfig`.
        protocol: :class:`keras_stss.evaluation.protocols.NamedProtocol`.
    """
    values = data.model_dump(mode="json")
    listed = sorted([name, clip.label] for name, clip in zip(clip_names(clips), clips, strict=True))
    how = {key: value for key, value in dataclasses.asdict(protocol).items() if key != "meaning"}
    return {
        "model": _digest_of_file(model),
        "data": {key: values[key] for key in DATA_KEYS if values[key] is not None},
        "protocol": how,
        "clips": hashlib.sha256(json.dumps(listed).encode()).hexdigest(),
    }


def matched(first, other, names):
    """Two sets of scores on the clips that both have, in the first's order.

    Args:
        first, other: :class:`Scores`.
        names: what to call them in messages, a pair of texts.

    Returns:
        A pair of :class:`Scores`.

    Raises:
        DataError: where their lists of clips, or the clips' labels, differ. Clips that one of them could not read are
            left out of both.
    """
    if first.depends["clips"] != other.depends["clips"]:
        raise DataError(_difference(first, other, names))
    places = {name: place for place, name in enumerate(other.clips.tolist())}
    rows = [row for row, name in enumerate(first.clips.tolist()) if name in places]
    if not rows:
        raise DataError(f"no clip could be read both in {names[0]} and in {names[1]}")
    return _rows(first, rows), _rows(other, [places[first.clips[row]] for row in rows])


def mean_of_models(parts):
    """The ensemble: :class:`Scores` whose probabilities are the mean of several models', on the clips that all have.

    (SELFY, Table 1, and MotionSqueeze, Table 1: 8 and 16 frames.)

    Args:
        parts: list of (name, :class:`Scores`).
    """
    (first_name, common), *others = parts
    for name, scores in others:
        common, _ = matched(common, scores, (first_name, name))
    rows = [common.logits, *(matched(common, scores, (first_name, name))[1].logits for name, scores in others)]
    unreadable = {path: reason for _, scores in reversed(parts) for path, reason in scores.unreadable.items()}
    logits = mean_scores(np.stack(rows), "softmax", axis=0).astype(np.float32)
    depends = {"models": [scores.depends for _, scores in parts], "clips": common.depends["clips"]}
    return dataclasses.replace(common, logits=logits, unreadable=unreadable, depends=depends)


def _difference(first, other, names):
    """What is different between two lists of clips."""
    labels = [dict(zip(scores.clips.tolist(), scores.label.tolist())) for scores in (first, other)]
    lines = []
    for own, others, name in ((*labels, names[0]), (*labels[::-1], names[1])):
        if alone := [clip for clip in own if clip not in others]:
            lines.append(f"{len(alone)} are in {name} alone ({_some(alone)})")
    if other_label := [clip for clip, label in labels[0].items() if labels[1].get(clip, label) != label]:
        lines.append(f"{len(other_label)} have other labels ({_some(other_label)})")
    what = "; ".join(lines) or "clips that could not be read differ"
    return (
        f"{names[0]} and {names[1]} are not tested on the same clips: {what}. Give all runs one data set with data.…=…"
    )


def _some(names):
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _rows(scores, rows):
    parts = {name: getattr(scores, name)[rows] for name in ("clips", "index", "label", "logits")}
    return dataclasses.replace(scores, **parts)


def _digest_of_file(path):
    """SHA-256 of a file; None where there is none."""
    if not Path(path).is_file():
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
