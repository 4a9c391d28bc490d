"""Weights from elsewhere into a model of this library, with a report of what went where."""

import logging
import re
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import keras
import numpy as np

from keras_stss import blocks as motion_blocks
from keras_stss.config import ConfigError
from keras_stss.layers import ChannelwiseMotion, TemporalConv, TemporalShift
from keras_stss.models.i3d import MODULES
from keras_stss.models.resnet import RESNETS
from keras_stss.models.weights.mobilenet_names import BLOCKS as INVERTED_BLOCKS
from keras_stss.models.weights.names import describe, strip
from keras_stss.models.weights.rules import KINDS, SHIFT_DIVISOR, Origin, swap_shifted
from keras_stss.models.weights.tensor_files import read_tensors

log = logging.getLogger(__name__)

HEAD = "logits/"
#: Motion blocks, which may differ from the file's where a load is not strict.
BLOCKS = tuple(getattr(motion_blocks, name) for name in motion_blocks.__all__)
#: What an STM network has beside a ResNet's layers.
NOT_IN_A_RESNET = (ChannelwiseMotion, TemporalConv)
#: Names to print of a list; the report's dictionary has them all.
SHOWN = 6


@dataclass
class Report:
    """What went where. Names of the file first, paths of the model's variables second."""

    source: str
    code: str  # whose code wrote the file
    model: dict  # the ``model`` section of a config of the file's own model
    classes: int | None
    matched: dict = field(default_factory=dict)  # name → path
    skipped: dict = field(default_factory=dict)  # name → reason
    unmatched_source: list = field(default_factory=list)  # names without a place in the model
    unmatched_target: list = field(default_factory=list)  # paths without a tensor in the file
    mismatched: list = field(default_factory=list)  # "name (shape) does not fit path (shape)"
    filled: dict = field(default_factory=dict)  # path → the value that the original has there without naming it
    differences: list = field(default_factory=list)  # what the model computes otherwise than the file's own
    left_random: list = field(default_factory=list)  # paths of the backbone among unmatched_target

    def faults(self):
        """Lines on everything that a strict load forbids."""
        heads = [f"{name}: {reason}" for name, reason in self.skipped.items() if reason.startswith("the head")]
        return [
            *self.differences,
            *self.mismatched,
            *heads,
            *([f"not in the model: {_some(self.unmatched_source)}"] if self.unmatched_source else []),
            *([f"not in the file: {_some(self.unmatched_target)}"] if self.unmatched_target else []),
        ]

    def lines(self):
        """The report as text."""
        reasons = list(dict.fromkeys(self.skipped.values()))
        described = ", ".join(f"{key}={value}" for key, value in self.model.items())
        return [
            f"{self.source}: {self.code}{f', {described}' if described else ''}"
            + (f", {self.classes} classes" if self.classes else ""),
            f"{len(self.matched)} tensors matched",
            *([f"{len(self.filled)} filled with what the original has there unnamed"] if self.filled else []),
            *(f"{list(self.skipped.values()).count(reason)} skipped: {reason}" for reason in reasons),
            *(line for line in self.faults() if line.split(": ")[0] not in self.skipped),
        ]

    def log(self):
        """Logs the lines; what makes the model another than the file's own, as warnings."""
        unlike = {*self.differences, *self.mismatched}
        for line in self.lines():
            log.log(logging.WARNING if line in unlike else logging.INFO, "%s", line)

        if self.left_random:
            log.warning(
                "%s lacks parts of the backbone, which stay as they were: %s", self.source, _some(self.left_random)
            )

    def as_dict(self):
        """For JSON."""
        return asdict(self)


def load_pretrained(model, source, strict=False, past_first=False):
    """Copies a weight file's tensors into a model.

    torchvision's and timm's ResNets and MobileNet-V2, the released models of TSM, MotionSqueeze and SELFY, KerasHub's
    ResNets, I3D's Kinetics weights, torchvision's GoogLeNet inflated into I3D, and models of this library. Layouts are
    turned to Keras'; nothing is copied where an error is raised.

    Args:
        model: a model as :func:`keras_stss.build_model` makes it.
        source: weight file (see :func:`keras_stss.models.weights.tensor_files.read_tensors`), or a run directory.
        strict: raises unless every tensor has its place, every variable its tensor, and the model computes what the
            file's own does. Otherwise the head is left out where the class counts differ, and so are motion blocks that
            one side lacks.
        past_first: the file's model shifts the first eighth of the channels from the past and the second from the
            future. The TSM code does it the other way round, and so does MotionSqueeze's as released; an early
            version of it did it this way. The channels are renumbered so that the outputs are the same.

    Returns:
        :class:`Report`.

    Raises:
        ConfigError: for a file that cannot be read, another backbone, shapes of the backbone that differ, or, with
            ``strict``, for anything that does not fit.
    """
    origin, tensors = _read(source)
    report = Report(str(source), origin.code, origin.model() if origin.backbone else {}, origin.classes)
    if past_first and not origin.shifted:
        raise ConfigError(f"{source} holds no model with a temporal shift, so its order cannot be turned")
    if origin.backbone:
        _check_backbone(model, origin, source)
        report.differences = _differences(model, origin)
    variables = {variable.path: variable for variable in model.variables if "seed_generator" not in variable.path}
    values, refused = {}, set()
    for name, value in tensors.items():
        _place(name, value, origin, variables, values, refused, report, past_first)
    _fill(origin, variables, values, report)
    report.unmatched_target = [path for path in variables if path not in values and path not in refused]
    if strict and (faults := report.faults()):
        raise ConfigError(f"{source} does not fit the model exactly:\n  " + "\n  ".join(faults))
    blocks = {layer.name for layer in model.layers if isinstance(layer, BLOCKS)}
    if broken := [line for line in report.mismatched if re.search(r" fit (\w+)", line)[1] not in blocks]:
        raise ConfigError(f"{source} does not fit the model:\n  " + "\n  ".join(broken[:SHOWN]))
    if not values:
        raise ConfigError(f"no tensor of {source} has a place in the model")
    for path, value in values.items():
        variables[path].assign(value)
    own = blocks | {layer.name for layer in model.layers if isinstance(layer, NOT_IN_A_RESNET)}
    heads = HEAD.rstrip("/")
    report.left_random = [
        path
        for path in report.unmatched_target
        if path.split("/")[0] not in own and not path.split("/")[0].endswith(heads)
    ]
    return report


def inspect(source):
    """The :class:`~keras_stss.models.weights.rules.Origin` of a weight file."""
    return _read(source)[0]


def _read(source):
    """(origin, tensors by name)."""
    path = Path(source)
    if path.is_dir():
        path = path / "best.keras"
        if not path.is_file():
            raise ConfigError(f"{source} is a folder without best.keras: no epoch of a run has ended there")
    if _is_ours(path):
        own = keras.saving.load_model(path, compile=False)
        tensors = {v.path: keras.ops.convert_to_numpy(v) for v in own.variables if "seed_generator" not in v.path}
        return Origin("keras_stss", "", "keras"), tensors
    kind, tensors = read_tensors(path)
    if kind == "torch":
        tensors = strip(tensors)
    return describe(kind, tensors, path), tensors


def _is_ours(path):
    """Whether a file is a Keras model made of this library's layers."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "config.json" in archive.namelist() and b'"keras_stss>' in archive.read("config.json")


def _place(name, value, origin, variables, values, refused, report, past_first):
    """Finds the place of one tensor and enters it into ``values``, or ``refused``, and the report."""
    place = (name, "", "")
    if origin.backbone:
        if reason := next((reason for pattern, reason in origin.unused.items() if re.fullmatch(pattern, name)), None):
            report.skipped[name] = reason
            return
        place = origin.place(name)
    if place is None or place[0] not in variables:
        report.unmatched_source.append(name)
        return
    path, layout, stream = place
    shape = tuple(variables[path].shape)
    turned = KINDS[origin.kind].arrange(value, layout, shape)
    if turned is None or turned.shape != shape:
        refused.add(path)
        if path.startswith(HEAD):
            report.skipped[name] = f"the head has {origin.classes or value.shape[-1]} classes there, {shape[-1]} here"
        else:
            report.mismatched.append(f"{name} {value.shape} does not fit {path} {shape}")
        return
    values[path] = swap_shifted(turned, stream) if past_first else turned
    report.matched[name] = path


def _fill(origin, variables, values, report):
    """Enters what the original has without naming it, in layers of which the file holds the rest."""
    layers = {path.rpartition("/")[0] for path in values}
    for path, variable in variables.items():
        value = next((value for pattern, value in origin.constants.items() if re.fullmatch(pattern, path)), None)
        if value is not None and path not in values and path.rpartition("/")[0] in layers:
            values[path] = np.full(variable.shape, value)
            report.filled[path] = value


def _check_backbone(model, origin, source):
    """Raises ConfigError where the model's backbone is not the file's."""
    here = _backbone({layer.name for layer in model.layers})
    if here != origin.backbone:
        raise ConfigError(
            f"{source} holds a {origin.backbone}, the model is a {here or 'network of another kind'}: set "
            f"model.backbone={origin.backbone}"
        )


def _backbone(names):
    """The backbone that layers of these names make up, or None."""
    if {f"{stage}_branch3" for stage in MODULES} <= names:
        return "i3d"
    if {f"{block}_project" for block in INVERTED_BLOCKS} <= names:
        return "mobilenet_v2"
    blocks = {match[1] for name in names if (match := re.fullmatch(r"(res\d_\d+)_add", name))}
    depths = tuple(sum(name.startswith(f"res{stage}_") for name in blocks) for stage in (2, 3, 4, 5))
    from_names = {form: name for name, form in RESNETS.items()}
    return from_names.get((depths, "res2_0_conv3" in names))


def _differences(model, origin):
    """Lines on what the model computes otherwise than the file's own; of an image model, the padding alone."""
    lines = _padding_differences(model, origin) if origin.backbone == "i3d" else []
    if origin.shifted is None:
        return lines
    shifts = {layer.name.removesuffix("_shift"): layer for layer in model.layers if isinstance(layer, TemporalShift)}
    if set(shifts) != origin.shifted:
        want = origin.model()
        keys = [f"model.{key}={want[key]}" for key in ("temporal", "shift_every") if key in want]
        lines.append(
            f"the original shifts in {len(origin.shifted)} residual blocks, the model in {len(shifts)}: set "
            + " ".join(keys)
        )
    divisors = {layer.divisor for layer in shifts.values()}
    if origin.shifted and divisors - {SHIFT_DIVISOR}:
        lines.append(f"the original shifts 1/{SHIFT_DIVISOR} of the channels: set model.shift_divisor={SHIFT_DIVISOR}")
    if origin.block:
        lines += _block_differences(model, origin.block, origin.settings)
    return lines


def _padding_differences(model, origin):
    found = model.get_layer("conv1").padding
    wanted = origin.section.get("stem_padding", "same")
    if found == wanted:
        return []
    return [
        f"the original's first convolution has {wanted} padding, the model's {found}: set model.stem_padding={wanted}"
    ]


def _block_differences(model, block, settings):
    place = f"model.insert.res3.{block}"
    layer = next((layer for layer in model.layers if layer.name == f"res3_{block}"), None)
    if layer is None:
        return [f"the original has a {block} block after res3: set {place}.… (see keras-stss keys)"]
    lines, here = [], layer.get_config()
    for key, value in settings.items():
        found = here[key]
        found = tuple(found) if isinstance(value, tuple) else found
        if found != value:
            shown = list(value) if isinstance(value, tuple) else value
            lines.append(
                f"the original's {block} block has {key}={shown}, the model's {found}: set {place}.{key}={shown}"
            )
    return lines


def _some(names):
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
