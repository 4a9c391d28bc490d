"""What a run shows while it works."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

#: Seconds between lines where the output is no terminal (a log file, a pipe).
LINE_INTERVAL = 10.0


class Counter:
    """Clips done, told now and then: a call with the number done prints a line where the last is long ago.

    Args:
        total: clips in all.
        verb: what is done to them.
        stream: text stream.
    """

    def __init__(self, total, verb, stream):
        self.total, self.verb, self.stream, self.last_line = total, verb, stream, time.monotonic()

    def __call__(self, done):
        if time.monotonic() - self.last_line >= LINE_INTERVAL:
            self.last_line = time.monotonic()
            print(f"{done} of {self.total} clips {self.verb}", file=self.stream, flush=True)


class ProgressLine:
    """Loss, accuracy, throughput and time left: a bar on a terminal, a line now and then elsewhere.

    Args:
        total: steps of the whole run.
        done: steps done before this process began.
        stream: text stream.
    """

    def __init__(self, total, done, stream):
        self.total, self.first, self.began = total, done, time.monotonic()
        self.clips = 0
        self.last_line = self.began
        self.console = Console(file=stream)
        self.bar = None
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[tail]}"),
            )
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("", total=total, completed=done, tail="")

    def __enter__(self):
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_):
        if self.bar:
            self.bar.stop()

    def step(self, step, clips, epoch_text, loss, accuracy):
        """Shows the state after a step of so many clips."""
        self.clips += clips
        now = time.monotonic()
        if not self.bar and now - self.last_line < LINE_INTERVAL:
            return
        elapsed = now - self.began
        left = elapsed / max(step - self.first, 1) * (self.total - step)
        head = f"epoch {epoch_text}"
        tail = (
            f"loss {loss:.3f}  top-1 {accuracy:6.1%}  {self.clips / elapsed:.1f} clips/s  "
            f"{time.strftime('%H:%M:%S', time.gmtime(left))} left"
        )
        if self.bar:
            self.bar.update(self.task, completed=step, description=head, tail=tail)
        else:
            self.last_line = now
            self.say(f"{head}  step {step}/{self.total}  {tail}")

    def say(self, text):
        """Prints a line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
