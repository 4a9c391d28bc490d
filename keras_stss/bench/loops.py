"""Our side of the benchmark of training: our loop and Keras's, which give way to one another every few steps.

Each runs whole, in a thread of its own, as a user would start it. What is called and timed lets it go on for the steps
of a case.
"""

import os
import threading
from pathlib import Path

import keras
import numpy as np

from keras_stss.config import parse_config
from keras_stss.data.annotations import read_annotations
from keras_stss.data.pipeline import training_stream
from keras_stss.data.synthetic import TEMPLATES, encode_webm, render_clip
from keras_stss.models import build_model

CLASSES = len(TEMPLATES)
#: Share of the time that a loop waited for data in the calls so far, by its name.
_waited = {}


class _Turns:
    """Lets a loop in another thread go on for some steps, call by call.

    Args:
        steps: of a call.
        loop: function that is given ``step``, to be called with the loss after each step; it need not return.
    """

    def __init__(self, steps, loop):
        self.steps, self.done, self.losses, self.error = steps, 0, [], None
        self.go, self.rests = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, args=(loop,), daemon=True).start()

    def _run(self, loop):
        self.go.acquire()
        try:
            loop(self._step)
            self.error = RuntimeError("the loop ended before it was told to")
        except BaseException as error:  # the caller tells it
            self.error = error
        self.rests.release()

    def _step(self, loss):
        if not self.done:
            self.losses.append(float(loss))
        self.done += 1
        if self.done % self.steps == 0:
            self.rests.release()
            self.go.acquire()

    def __call__(self):
        if self.error is None:
            self.go.release()
            self.rests.acquire()
        if self.error is not None:
            raise self.error


def _config(case, xla):
    return parse_config(
        {
            "data": {
                "format": "clips",
                "root": case["root"],
                "annotations": "clips.csv",
                "workers": case["threads"],
                **{key: case[key] for key in ("frames", "resize", "crop")},
            },
            "model": case["model"],
            "train": {
                "run": str(Path(case["root"], "run-xla" if xla else "run")),
                "batch_size": case["batch"],
                "checkpoint_steps": 10**6,
                "strategy": "one",
                "xla": xla,
            },
        }
    )


def _set(case, arrays, mode):
    """Not timed: writes the clips, and a table that has each of them under many names."""
    root, lines = Path(case["root"]), ["path,label,split"]
    names = case["epoch"] * case["batch"]
    for number in range(case["files"]):
        clip = render_clip(
            number % CLASSES, np.random.default_rng(number), case["length"], case["height"], case["width"]
        )
        encode_webm(root / f"{number}.webm", clip)
    for number in range(names + CLASSES):
        name = f"{number}.webm"
        if number >= case["files"]:
            os.link(root / f"{number % case['files']}.webm", root / name)
        label, split = TEMPLATES[number % case["files"] % CLASSES], "train" if number < names else "validation"
        lines.append(f"{name},{label.replace('[', '').replace(']', '')},{split}")
    (root / "clips.csv").write_text("\n".join(lines) + "\n")
    return (lambda: None), lambda _: {}


def _loop(xla):
    """``keras-stss train`` with all that it does at each step: progress, TensorBoard, checks."""

    def make(case, arrays, mode):
        from keras_stss.training import loop as module
        from keras_stss.training.showing.progress import ProgressLine

        waiting = _waited.setdefault("loop, XLA" if xla else "loop", [])

        def train(step):
            class Progress(ProgressLine):  # not module.ProgressLine, which may be another loop's by now
                def step(self, number, clips, epoch, loss, accuracy, waited):
                    super().step(number, clips, epoch, loss, accuracy, waited)
                    waiting.append((self.recent.waited, self.recent.seconds))
                    with self.pause():
                        step(loss)

            module.ProgressLine = Progress
            with open(os.devnull, "w") as nowhere:
                module.train(_config(case, xla), "bench", stream=nowhere)

        turns = _Turns(case["steps"], train)
        return turns, lambda _: {"loss": np.float64(turns.losses[0])}

    return make


def _fit(xla):
    """``model.fit`` without any callback of its own but the one that counts steps."""

    def make(case, arrays, mode):
        def fit(step):
            config = _config(case, xla)
            data_set, recipe = read_annotations(config.data), config.train
            keras.utils.set_random_seed(recipe.seed)
            model = build_model(config, classes=len(data_set.labels))
            optimizer = keras.optimizers.SGD(
                recipe.learning_rate, recipe.momentum, recipe.nesterov,
                weight_decay=recipe.weight_decay, global_clipnorm=recipe.clip_norm,
            )  # fmt: skip
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=xla)
            stream = training_stream(data_set.train, data_set.labels, config.data, recipe.batch_size, recipe.seed)
            pairs = stream.map(lambda batch: (batch["frames"], batch["label"]))
            count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: step(logs["loss"]))
            model.fit(pairs, steps_per_epoch=case["epoch"], epochs=10**6, verbose=0, callbacks=[count])

        turns = _Turns(case["steps"], fit)
        return turns, lambda _: {"loss": np.float64(turns.losses[0])}

    return make


def _waited_share(case, arrays, mode):
    """Not timed: of the loop's last half minute."""
    waited, seconds = _waited[case["of"]][-1]
    return (lambda: None), lambda _: {"share": np.float64(waited / seconds)}


CONTESTANTS = {
    ("train", "set"): _set,
    ("train", "loop"): _loop(xla=False),
    ("train", "loop, XLA"): _loop(xla=True),
    ("train", "fit"): _fit(xla=False),
    ("train", "fit, XLA"): _fit(xla=True),
    ("train", "waited"): _waited_share,
}
