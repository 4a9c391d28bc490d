"""The progress of a run: throughput of late, waiting, and the time that is left, on a clock set by hand."""

import io

import pytest
from rich.console import Console

from keras_stss.training.showing import progress
from keras_stss.training.showing.progress import ProgressLine


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def run(line, clock, steps, seconds, waited=0.0, epoch="1/2", first=1, clips=16):
    for step in range(first, first + steps):
        clock.now += seconds
        line.step(step, clips, epoch, 0.5, 0.75, waited)


def test_a_line_tells_throughput_waiting_and_time_left(clock):
    stream = io.StringIO()
    with ProgressLine(100, 0, stream) as line:
        run(line, clock, 1, 60.0)  # compiling
        run(line, clock, 20, 2.0, waited=0.5, first=2)
    first, *_, last = stream.getvalue().splitlines()
    assert first.endswith("0.3 clips/s  wait 0%")  # nobody knows yet
    assert last == "epoch 1/2  step 21/100  loss 0.500  top-1 75.0%  8.0 clips/s  wait 25%  0:02:38 left"


def test_only_the_last_steps_count_for_what_is_shown(clock):
    stream = io.StringIO()
    with ProgressLine(1000, 0, stream) as line:
        run(line, clock, 50, 10.0, waited=9.0)
        run(line, clock, 40, 1.0, first=51)
    assert "16.0 clips/s  wait 0%  0:15:10 left" in stream.getvalue().splitlines()[-1]


def test_pauses_do_not_slow_the_steps_down(clock):
    """Neither a pause between two steps, nor one at whose beginning the last step is shown."""
    stream = io.StringIO()
    with ProgressLine(1000, 0, stream) as line:
        run(line, clock, 8, 2.0)
        with line.pause():
            clock.now += 500.0
        run(line, clock, 1, 2.0, first=9)
        with line.pause():
            run(line, clock, 1, 2.0, first=10)
            clock.now += 500.0
        run(line, clock, 6, 2.0, first=11)
    assert "8.0 clips/s" in stream.getvalue().splitlines()[-1] and line.paused == 1000.0


def test_time_left_foresees_evaluations_and_days(clock):
    """Of 100 hours of steps an hour is done, and the evaluation after it took half an hour."""
    stream = io.StringIO()
    with ProgressLine(6000, 0, stream) as line:
        run(line, clock, 60, 60.0)
        with line.pause():
            clock.now += 1800.0
        run(line, clock, 1, 60.0, epoch="2/2", first=61)
    left = stream.getvalue().splitlines()[-1].split()[-2]
    hours, minutes, _ = map(int, left.split(":"))
    assert hours + minutes / 60 == pytest.approx((6000 - 61) * (1 / 60 + 0.5 / 61), abs=0.02)


def test_a_run_that_goes_on_counts_its_own_steps(clock):
    stream = io.StringIO()
    with ProgressLine(100, 90, stream) as line:
        run(line, clock, 5, 6.0, first=91)
    assert stream.getvalue().splitlines()[-1].endswith("2.7 clips/s  wait 0%  0:00:36 left")


def test_lines_are_seldom(clock):
    stream = io.StringIO()
    with ProgressLine(1000, 0, stream) as line:
        run(line, clock, 100, 0.5)
        counter = line.counter(40, "evaluated")
        counter(8)
        clock.now += progress.LINE_INTERVAL
        counter(16)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 6 and lines[-1] == "16 of 40 clips evaluated"


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_a_bar(clock, monkeypatch, width):
    stream = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda file: Console(file=file, force_terminal=True, width=width))
    with ProgressLine(100, 0, stream) as line:
        run(line, clock, 3, 0.1, epoch="12/14")
        line.bar.refresh()
        line.say("[epoch] 1/2 ended")
    text = stream.getvalue()
    assert "epoch 12/14" in text and "loss 0.500  top-1 75.0%" in text and "left" in text and "…" not in text
    assert "[epoch] 1/2 ended\n" in text
