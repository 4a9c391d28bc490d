"""Whether an export computes what the Keras model computes, and how fast it is here."""

import math
import statistics
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_stss.data.annotations import DataError, read_annotations
from keras_stss.data.pipeline import read_view
from keras_stss.data.video import ClipError
from keras_stss.ops import portable

#: Clips of noise, of moving blocks, and of the run's validation set, where it can be read.
NOISE, BLOCKS, VALIDATION = 2, 6, 8
#: Rounds in which the model and the export take turns for the speed.
ROUNDS = 5
#: A class whose probability is as near to the first's is as good an answer.
TIE = 0.02


class Case(NamedTuple):
    """Clips uint8 (N, T, S, S, 3) with the Keras model's probabilities (N, K).

    N is a whole number of batches: the first ``count`` are different clips, the others the same again.
    """

    clips: np.ndarray
    expected: np.ndarray
    count: int
    validation: int  # how many of the different clips are of the validation set


class Difference(NamedTuple):
    """What an export's probabilities are beside the model's."""

    largest: float  # infinite where one is not a number
    same_class: float  # share of the clips whose first class is the model's, or ties with it


def make_case(model, data, batch):
    """Clips to compare on, a whole number of batches, and what the model says of them.

    Args:
        model: ``keras.Model`` with logits.
        data: :class:`keras_stss.config.DataConfig` of the run; its validation clips take part where they can be read.
        batch: clips that the exports take at a time.

    Returns:
        :class:`Case`.
    """
    read = _validation_clips(data)
    clips = np.concatenate([_drawn_clips(data.frames, data.crop), *(clip[None] for clip in read)])
    # The same form of each operation: in noise maxima are so near that they change places with the rounding.
    with portable():
        logits = [model(clip[None], training=False) for clip in clips]
    expected = tf.nn.softmax(tf.cast(tf.concat(logits, 0), tf.float32)).numpy()
    rows = np.arange(-(-len(clips) // batch) * batch) % len(clips)
    return Case(clips[rows], expected[rows], len(clips), len(read))


def compare(run, case, batch):
    """The :class:`Difference` of a function from frames (batch, T, S, S, 3) to probabilities (batch, K)."""
    found = np.concatenate([run(case.clips[start : start + batch]) for start in range(0, len(case.clips), batch)])
    difference = np.abs(found - case.expected)
    chosen = case.expected[np.arange(len(found)), np.argmax(np.nan_to_num(found, nan=-1.0), axis=1)]
    same = (chosen >= case.expected.max(axis=1) - TIE)[: case.count]
    return Difference(math.inf if np.isnan(difference).any() else float(difference.max()), float(same.mean()))


def time_in_turns(functions, rounds=ROUNDS, clock=time.perf_counter):
    """Medians, in milliseconds, of functions that are called one after another in each round.

    Args:
        functions: {name: function without arguments}; each is called once before.
        rounds: how often.
        clock: ``time.process_time`` for the time that the processor worked, which others' work does not add to.

    Returns:
        {name: milliseconds}
    """
    times = {name: [] for name in functions}
    for measured in range(-1, rounds):
        for name, function in functions.items():
            start = clock()
            function()
            if measured >= 0:
                times[name].append(clock() - start)
    return {name: 1e3 * statistics.median(each) for name, each in times.items()}


def _drawn_clips(frames, side):
    """Noise, and coarse blocks that move: clips of noise alone all look the same to a network."""
    random = np.random.default_rng(0)
    clips = list(random.integers(0, 256, (NOISE, frames, side, side, 3), np.uint8))
    for cell in np.geomspace(max(side // 3, 1), max(side // 24, 1), BLOCKS).astype(int):
        blocks = random.integers(0, 200, (side // cell + 2,) * 2 + (3,), np.uint8).repeat(cell, 0).repeat(cell, 1)
        step = random.integers(-2, 3, 2)
        moved = (np.roll(blocks, tuple(number * step), (0, 1))[:side, :side] for number in range(frames))
        clips.append(np.stack([*moved]) + random.integers(0, 56, (frames, side, side, 3), np.uint8))
    return np.stack(clips)


def _validation_clips(data):
    """As many as can be read of the first ones; none where the data set is not at hand."""
    try:
        found = read_annotations(data).validation
    except (DataError, OSError):
        return []
    clips = []
    for clip in found[:: max(len(found) // VALIDATION, 1)][:VALIDATION]:
        try:
            clips.append(read_view(clip, data))
        except (ClipError, OSError):
            continue
    return clips
