"""What TensorBoard shows of a run: curves, clips, mistakes, classes and the motion that the blocks see."""

import contextlib
import errno
import functools
import logging
import os

import keras
import numpy as np
import tensorflow as tf

from keras_stss.evaluation.colors import as_large, displacement_colors, full_length, short, wheel
from keras_stss.models.features import feature_extractor
from keras_stss.training.showing import drawing
from keras_stss.training.showing.drawing import Row

log = logging.getLogger(__name__)

#: Classes at each end of the table of accuracies.
ENDS = 10
#: Pixels of the colour wheel.
WHEEL = 96


def _full_disk(error):
    """The number of the system's error behind an exception, of the system or of TensorFlow, where a disk is full."""
    for number in (errno.ENOSPC, errno.EDQUOT):
        if getattr(error, "errno", None) == number:
            return number
        # A GPU without memory is "exhausted" too.
        if isinstance(error, tf.errors.OpError) and os.strerror(number) in str(error):
            return number
    return None


def _ends_no_run(method):
    """A method whose failure costs only what it shows; but a full disk is the run's business."""

    @functools.wraps(method)
    def guarded(self, *args, **kwargs):
        if method.__name__ in self.failed:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            if number := _full_disk(error):
                raise OSError(number, os.strerror(number), self.folder) from error
            self.failed.add(method.__name__)
            reason = (str(error).strip().splitlines() or [""])[0]
            log.warning(
                "TensorBoard goes without %s from now on: %s: %s", method.__name__, type(error).__name__, reason
            )
            log.debug("", exc_info=True)
            return None

    return guarded


class Board:
    """Writes for TensorBoard. Nothing that goes wrong here ends a run, but for a full disk, an OSError.

    Args:
        folder: for the event files.
        labels: class names by index.
        config: :class:`keras_stss.config.BoardConfig`.
    """

    def __init__(self, folder, labels, config):
        self.folder, self.labels, self.config = str(folder), labels, config
        self.failed = set()  # names of methods that are left out
        self.steps, self.mark = 0, None  # of the profile
        self.extractor = None  # (model, its functional extractor, {block's name: layer})

    @functools.cached_property
    def writer(self):
        return tf.summary.create_file_writer(self.folder)

    @contextlib.contextmanager
    def _writing(self, step):
        with tf.device("CPU:0"), self.writer.as_default(step):  # numbers take no way over a GPU
            yield

    @_ends_no_run
    def scalars(self, step, values):
        """Numbers of a step, by their tags."""
        with self._writing(step):
            self._numbers(values)

    @_ends_no_run
    def epoch(self, step, row, class_accuracies=None):
        """The figures of an epoch.

        Args:
            step: steps done.
            row: what goes into metrics.jsonl; its numbers are shown as ``epoch/…``.
            class_accuracies: of the validation clips, K numbers, None for a class without clips; or None where nothing
                was evaluated.
        """
        with self._writing(step):
            numbers = {key: value for key, value in row.items() if isinstance(value, (int, float))}
            self._numbers({f"epoch/{key}": value for key, value in numbers.items() if key not in ("epoch", "step")})
            known = drawing.sorted_classes(self.labels, class_accuracies or [])
            if known and row["epoch"] % self.config.every == 0:
                title = f"validation clips after epoch {row['epoch']}: "
                self._image("classes/accuracy", drawing.class_chart(self.labels, class_accuracies, title))
                tf.summary.text("classes/best_and_worst", _class_table(known))
        self.writer.flush()

    @_ends_no_run
    def clips(self, step, tag, frames, captions):
        """Clips as strips of frames, one below the other.

        Args:
            step: steps done.
            tag: of the picture.
            frames: uint8 (N, T, H, W, 3), or (N, V, T, H, W, 3) with V views of each.
            captions: N texts.
        """
        frames = np.asarray(frames)
        rows = []
        for views, caption in zip(frames if frames.ndim == 6 else frames[:, None], captions):
            rows.append(Row(drawing.strip(views[0]), caption))
            rows += [Row(drawing.strip(view)) for view in views[1:]]
        if rows:
            with self._writing(step):
                self._image(tag, drawing.sheet(rows))

    @_ends_no_run
    def motion(self, step, model, frames, captions=None):
        """The displacements that the model's motion blocks see in clips, as colours; a picture for each block.

        Args:
            step: steps done.
            model: of the run.
            frames: uint8 (N, T, H, W, 3); only ``motion`` clips of them are shown.
            captions: N texts, or None.
        """
        frames = np.asarray(frames)[: self.config.motion]
        if not len(frames):
            return
        layers = self._blocks(model)
        if not layers:
            return
        found = self.extractor[1](frames, training=False)
        with self._writing(step):
            for name, layer in layers.items():
                displacement = np.asarray(found[f"{name}/displacement"], "float32")  # (N, T, H', W', L, 2)
                self._image(f"motion/{name}", motion_sheet(frames, displacement, offsets_of(layer), captions))

    def _blocks(self, model):
        """{name: layer} of the blocks with displacements; the extractor is made for a model once."""
        if self.extractor is None or self.extractor[0] is not model:
            everything = feature_extractor(model)
            outputs = {name: tensor for name, tensor in everything.output.items() if name.endswith("/displacement")}
            layers = {name.rpartition("/")[0]: model.get_layer(name.rpartition("/")[0]) for name in outputs}
            without = [layer.name for layer in model.layers if hasattr(layer, "motion_features")]
            without = [name for name in without if name not in layers]
            if without:
                log.info("TensorBoard shows no motion of %s: displacements are not what they see", ", ".join(without))
            self.extractor = (model, keras.Model(everything.input, outputs) if outputs else None, layers)
        return self.extractor[2]

    @_ends_no_run
    def profile(self, step):
        """Before each step: profiles those from the first to the last that the config names.

        It counts the steps itself, from 1: a run that goes on compiles its first step again.

        Args:
            step: its number in the run.
        """
        if not self.config.profile:
            return
        first, last = self.config.profile
        self.steps += 1
        if first <= self.steps <= last:
            if self.steps == first:
                tf.profiler.experimental.start(self.folder)
            self._mark(tf.profiler.experimental.Trace("train", step_num=step, _r=1))
        elif self.mark:
            self._stop_profile()

    def _stop_profile(self):
        self._mark(None)
        tf.profiler.experimental.stop()
        log.info("the profile of steps %d to %d is in %s", *self.config.profile, self.folder)

    def _mark(self, mark):
        """The steps of a profile follow one another."""
        if self.mark:
            self.mark.__exit__(None, None, None)
        self.mark = mark
        if mark:
            mark.__enter__()

    @_ends_no_run
    def close(self):
        """Writes what is not written yet."""
        if self.mark:
            self._stop_profile()
        if "writer" in self.__dict__:
            self.writer.close()

    def _numbers(self, values):
        """All in one record: a call of ``tf.summary.scalar`` for each takes longer than all else between two steps."""
        values = [tf.compat.v1.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        tf.summary.experimental.write_raw_pb(tf.compat.v1.Summary(value=values).SerializeToString())

    def _image(self, tag, picture):
        tf.summary.image(tag, picture[None])


def offsets_of(layer):
    """The temporal offsets of a block's displacements, or None."""
    offsets = getattr(layer, "temporal_offsets", None)
    return offsets or getattr(getattr(layer, "displacement", None), "temporal_offsets", None)


def motion_sheet(frames, displacement, offsets=None, captions=None):
    """Frames, and below them a row of coloured displacements for each offset but 0, beside the colour wheel.

    Args:
        frames: uint8 (N, T, H, W, 3).
        displacement: (N, T, H', W', L, 2), horizontal and vertical, in positions.
        offsets: L temporal offsets, or None.
        captions: N texts, or None.

    Returns:
        uint8 picture. The full colour is what 99 % of the displacements shown do not exceed.
    """
    shown = [number for number in range(displacement.shape[-2]) if not offsets or offsets[number]]
    largest = full_length(displacement[..., shown, :])
    times = drawing.shown_frames(frames.shape[1])
    rows = []
    for number, (clip, moved) in enumerate(zip(frames, displacement)):
        rows.append(Row(drawing.strip(clip), captions[number] if captions else f"clip {number + 1}"))
        for place in shown:
            colors = displacement_colors(moved[times][..., place, :], largest)  # (T, H', W', 3)
            word = f"t{offsets[place]:+d}" if offsets else f"{place}"
            rows.append(Row(drawing.strip(as_large(colors, clip.shape[1:3]), edge=210), word=word))
    height, width = displacement.shape[2:4]
    text = f"full colour:\n{short(largest)} positions\nof the {height}×{width} map"
    return drawing.sheet(rows, wheel(WHEEL), text)


def _class_table(known):
    """Markdown of the best and the worst classes; ``known`` is sorted."""
    lines = ["| class | accuracy |", "| --- | --- |"]
    ends = known if len(known) <= 2 * ENDS else [*known[:ENDS], ("…", None), *known[-ENDS:]]
    for label, accuracy in ends:
        text = label.replace("\\", "\\\\").replace("|", "\\|")
        lines.append(f"| {text} | {'' if accuracy is None else f'{accuracy:.1%}'} |")
    return "\n".join(lines)
