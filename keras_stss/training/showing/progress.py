"""What a run shows while it works."""

import contextlib
import time
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

#: Seconds between lines where the output is no terminal (a log file, a pipe).
LINE_INTERVAL = 10.0
#: Seconds that clips/s, the wait share and the time left are taken from.
RECENT = 30.0


class Counter:
    """Clips done, told now and then: a call with the number done prints a line where the last is long ago.

    Args:
        total: clips in all.
        verb: what is done to them.
        stream: text stream, or
        say: function that prints a line.
    """

    def __init__(self, total, verb, stream=None, say=None):
        self.total, self.verb, self.last_line = total, verb, time.monotonic()
        self.say = say or (lambda text: print(text, file=stream, flush=True))

    def __call__(self, done):
        if time.monotonic() - self.last_line >= LINE_INTERVAL:
            self.last_line = time.monotonic()
            self.say(f"{done} of {self.total} clips {self.verb}")


class _Sums:
    """Steps, and what went into them."""

    def __init__(self):
        self.steps, self.seconds, self.clips, self.waited = 0, 0.0, 0, 0.0

    def add(self, seconds, clips, waited, steps=1):
        self.steps += steps
        self.seconds += seconds
        self.clips += clips
        self.waited += waited

    @property
    def rate(self):
        return self.clips / max(self.seconds, 1e-9)

    @property
    def wait_share(self):
        return self.waited / max(self.seconds, 1e-9)


class ProgressLine:
    """Loss, accuracy, throughput, waiting and time left: a bar on a terminal, a line now and then elsewhere.

    The time of a step is the time since the step before; :meth:`pause` takes out what is no training.

    Args:
        total: steps of the whole run.
        done: steps done before this process began.
        stream: text stream.
    """

    def __init__(self, total, done, stream):
        self.total, self.stream = total, stream
        self.recent, self.latest = _Sums(), deque()
        self.steps, self.paused = 0, 0.0  # of this process
        self.last_step = self.last_line = time.monotonic()
        self.console = Console(file=stream)
        self.bar = None
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.fields[tail]}"),
            )
            self.bar = Progress(*columns, console=self.console, expand=True)
            self.task = self.bar.add_task("", total=total, completed=done, tail="")

    def __enter__(self):
        if self.bar:
            self.bar.start()
        self.last_step = time.monotonic()
        return self

    def __exit__(self, *_):
        if self.bar:
            self.bar.stop()

    def step(self, step, clips, epoch_text, loss, accuracy, waited=0.0):
        """Shows the state after a step.

        Args:
            step: steps of the run that are done.
            clips: of this step.
            epoch_text: such as "3/14".
            loss, accuracy: to be shown.
            waited: seconds that this step waited for its data.
        """
        now = time.monotonic()
        self._count(now - self.last_step, clips, waited)
        self.last_step = now
        if not self.bar and now - self.last_line < LINE_INTERVAL:
            return
        head = f"epoch {epoch_text}"
        tail = (
            f"loss {loss:.3f}  top-1 {accuracy:.1%}  {self.recent.rate:.1f} clips/s  "
            f"wait {self.recent.wait_share:.0%}" + self._left(step)
        )
        if self.bar:
            self.bar.update(self.task, completed=step, description=head, tail=tail)
        else:
            self.last_line = now
            self.say(f"{head}  step {step}/{self.total}  {tail}")

    def _count(self, seconds, clips, waited):
        if self.steps == 1:  # the first step compiles everything: it says nothing about those to come
            self.latest.clear()
            self.recent = _Sums()
        self.steps += 1
        self.recent.add(seconds, clips, waited)
        self.latest.append((seconds, clips, waited))
        while self.recent.seconds - self.latest[0][0] >= RECENT:
            self.recent.add(*(-number for number in self.latest.popleft()), steps=-1)

    def _left(self, step):
        """What the rest takes: steps as fast as of late, and as much time beside them as so far."""
        if self.steps == 1:
            return ""
        per_step = self.recent.seconds / self.recent.steps + self.paused / self.steps
        return f"  {_clock((self.total - step) * per_step)} left"

    @contextlib.contextmanager
    def pause(self):
        """Around what is no training: its time counts for the time left only."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - max(began, self.last_step)  # a step may be shown in between
            self.paused += seconds
            self.last_step += seconds

    def counter(self, total, verb):
        """A :class:`Counter` whose lines go well with the bar."""
        return Counter(total, verb, say=self.say)

    def say(self, text):
        """Prints a line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds):
    """Hours, minutes and seconds; a run may take more than a day."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
