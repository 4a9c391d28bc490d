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

from keras_stss.bench.machine import Others, wait_until_idle
from keras_stss.bench.workers import WorkerError

_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Something to time: ``name`` in the worker ``where``, called ``label`` in the tables."""

    where: str
    name: str
    label: str


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure: every contestant is visited ``rounds`` times for about ``seconds`` each.

    With ``warm`` the first call of a visit never counts: where work is done ahead, it finds some of it ready.
    """

    rounds: int = 7
    seconds: float = 0.12
    warm: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
    """What a contestant computes.

    Args:
        kind: what the workers' files call it.
        case: what the contestants need to know, JSON values.
        arrays: {name: NumPy array}.
        mode: "forward" or "step".
        compare: function from a contestant's {name: array} to {"difference": float, "wrong": reason or None}, or None.
    """

    kind: str
    case: dict
    arrays: dict
    mode: str
    compare: object = None


def race(workers, entries, effort):
    """Times all contestants in turn.

    Args:
        workers: :class:`keras_stss.bench.workers.Workers`.
        entries: list of (:class:`Contestant`, :class:`Task`).
        effort: :class:`Effort`.

    Returns:
        List of rows in the same order: {"label", "where", "median", "low", "high" (quartiles, in seconds),
        "calls", "others" (share of the machine), "visits" (of each round: {"seconds", "processor"} of a call),
        "difference", "wrong"}, or {"label", "where", "error"}.
    """
    rows = [{"label": contestant.label, "where": contestant.where} for contestant, _ in entries]
    with _prepared(workers, entries, rows) as running:
        _note("timing")
        _time(workers, running, effort)
    return rows


def peak_memory(workers, entries):
    """Peak memory of one call of each contestant, outputs included: list of bytes, or None where it cannot be told."""
    rows = [{} for _ in entries]
    with _prepared(workers, entries, rows) as running:
        for where, key, row in running:
            _note(f"memory of {key}")
            with contextlib.suppress(WorkerError):
                row["bytes"] = workers.ask(where, do="memory", key=key)["bytes"]
    return [row.get("bytes") for row in rows]


def fetch(workers, contestant, task):
    """What one contestant computes, {name: array}; raises :class:`WorkerError` where it cannot."""
    row, found = {}, {}
    task = dataclasses.replace(task, compare=lambda outputs: found.update(outputs) or {})
    with _prepared(workers, [(contestant, task)], [row]):
        if "error" in row:
            raise WorkerError(row["error"])
    return found


@contextlib.contextmanager
def _prepared(workers, entries, rows):
    """[(worker, key, row)] of those that are ready to run; the others' rows say why they are not."""
    running = []
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = Path(scratch, "inputs.npz"), Path(scratch, "outputs.npz")
        written = None
        for (contestant, task), row in zip(entries, rows):
            key = f"{contestant.label}, {task.mode} {next(_numbers)}"
            _note(key)
            if written is not task.arrays:
                np.savez(inputs, **task.arrays)
                written = task.arrays
            request = {"kind": task.kind, "name": contestant.name, "case": task.case, "mode": task.mode}
            request |= {"key": key, "arrays": str(inputs), "outputs": str(outputs)}
            try:
                workers.ask(contestant.where, do="prepare", **request)
            except WorkerError as error:
                row["error"] = str(error)
                continue
            running.append((contestant.where, key, row))
            if task.compare:
                with np.load(outputs) as file:
                    row |= task.compare(dict(file))
    yield running
    for where, key, _ in running:
        workers.ask(where, do="forget", key=key)
    _note("")


def _time(workers, running, effort):
    others = Others(workers.pids())
    times = {key: [] for _, key, _ in running}
    taken = {key: [] for key in times}  # (others' processor seconds, all that there were)
    visits = {key: [] for key in times}
    for number in range(effort.rounds):
        for where, key, _ in running[:: -1 if number % 2 else 1]:  # there and back: nobody always follows the same one
            if effort.warm:
                wait_until_idle(workers.pids()[1:])
            others.reset()
            start = time.perf_counter()
            answer = workers.ask(where, do="time", key=key, seconds=effort.seconds, warm=effort.warm)
            capacity = (time.perf_counter() - start) * os.cpu_count()
            times[key] += answer["times"]
            visits[key].append({"seconds": statistics.median(answer["times"]), "processor": answer["processor"]})
            taken[key].append((others.seconds(), capacity))
    for _, key, row in running:
        row["median"], row["calls"] = statistics.median(times[key]), len(times[key])
        row["low"], row["high"] = (float(value) for value in np.quantile(times[key], (0.25, 0.75)))
        row["others"], row["visits"] = _share(taken[key]), visits[key]


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
