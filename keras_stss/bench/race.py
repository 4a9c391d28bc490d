"""Contestants timed in turn, so that whatever slows the machine down slows them all."""

import contextlib
import dataclasses
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from keras_stss.bench.machine import Others
from keras_stss.bench.workers import WorkerError

_keys = itertools.count()


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Something to time: ``name`` in the worker ``where``, called ``label`` in the tables."""

    where: str
    name: str
    label: str


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure: every contestant is visited ``rounds`` times for about ``seconds`` each."""

    rounds: int = 9
    seconds: float = 0.15


@dataclasses.dataclass(frozen=True)
class Race:
    """What is computed: by all contestants alike.

    Args:
        kind: what the workers' files call this race.
        case: what the contestants need to know, JSON values.
        arrays: {name: NumPy array}, given to each.
        mode: "forward" or "step".
        compare: function from a contestant's {name: array} to {"difference": float, "wrong": reason or None}, or None.
    """

    kind: str
    case: dict
    arrays: dict
    mode: str
    compare: object = None


def race(workers, contestants, what, effort):
    """Times all contestants.

    Args:
        workers: :class:`keras_stss.bench.workers.Workers`.
        contestants: list of :class:`Contestant`.
        what: :class:`Race`.
        effort: :class:`Effort`.

    Returns:
        List of rows in the contestants' order: {"label", "where", "median", "low", "high" (quartiles, in seconds),
        "calls", "others" (share of the machine), "difference", "wrong"}, or {"label", "where", "error"}.
    """
    rows = {contestant: {"label": contestant.label, "where": contestant.where} for contestant in contestants}
    with _prepared(workers, contestants, what, rows) as keys:
        _note(f"{what.kind} {what.mode}: timing")
        _time(workers, keys, rows, effort)
    return list(rows.values())


def peak_memory(workers, contestants, what):
    """Peak memory of one call of each contestant, outputs included: list of bytes, or None where it cannot be told."""
    rows = {contestant: {} for contestant in contestants}
    with _prepared(workers, contestants, what, rows) as keys:
        for contestant, key in keys.items():
            _note(f"{what.kind} {what.mode}: memory of {contestant.label}")
            try:
                rows[contestant]["bytes"] = workers.ask(contestant.where, do="memory", key=key)["bytes"]
            except WorkerError:
                continue
    return [row.get("bytes") for row in rows.values()]


def fetch(workers, contestant, what):
    """What one contestant computes, {name: array}; raises :class:`WorkerError` where it cannot."""
    rows, found = {contestant: {}}, {}
    what = dataclasses.replace(what, compare=lambda outputs: found.update(outputs) or {})
    with _prepared(workers, [contestant], what, rows):
        if "error" in rows[contestant]:
            raise WorkerError(rows[contestant]["error"])
    return found


@contextlib.contextmanager
def _prepared(workers, contestants, what, rows):
    """{contestant: key} of those that are ready to run; the others' rows say why not."""
    keys = {}
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = Path(scratch, "inputs.npz"), Path(scratch, "outputs.npz")
        np.savez(inputs, **what.arrays)
        for contestant in contestants:
            _note(f"{what.kind} {what.mode}: {contestant.label}")
            key = f"{what.kind}-{next(_keys)}"
            request = {"kind": what.kind, "name": contestant.name, "case": what.case, "mode": what.mode}
            request |= {"key": key, "arrays": str(inputs), "outputs": str(outputs)}
            try:
                workers.ask(contestant.where, do="prepare", **request)
            except WorkerError as error:
                rows[contestant]["error"] = str(error)
                continue
            keys[contestant] = key
            if what.compare:
                with np.load(outputs) as file:
                    rows[contestant] |= what.compare(dict(file))
    yield keys
    for contestant, key in keys.items():
        workers.ask(contestant.where, do="forget", key=key)
    _note("")


def _time(workers, keys, rows, effort):
    others = Others(workers.pids())
    times = {contestant: [] for contestant in keys}
    taken = {contestant: [] for contestant in keys}  # (others' processor seconds, all that there were)
    for number in range(effort.rounds):
        for contestant in list(keys)[:: -1 if number % 2 else 1]:  # there and back: nobody always follows the same one
            others.reset()
            start = time.perf_counter()
            answer = workers.ask(contestant.where, do="time", key=keys[contestant], seconds=effort.seconds)
            capacity = (time.perf_counter() - start) * os.cpu_count()
            times[contestant] += answer["times"]
            taken[contestant].append((others.seconds(), capacity))
    for contestant, sample in times.items():
        row = rows[contestant]
        row["median"], row["calls"] = statistics.median(sample), len(sample)
        row["low"], row["high"] = (float(value) for value in np.quantile(sample, (0.25, 0.75)))
        row["others"] = _share(taken[contestant])


def _share(taken):
    """Share of the machine that others had over all visits (one alone is too short for the system's clock), or None."""
    if any(seconds is None for seconds, _ in taken):
        return None
    seconds, capacity = map(sum, zip(*taken))
    return min(max(seconds / capacity, 0.0), 1.0)


def _note(text):
    """One line of progress that overwrites itself; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
