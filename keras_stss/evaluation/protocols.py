"""Test protocols by name: which clips and crops of a video are scored, and how their scores are averaged."""

import dataclasses
from types import MappingProxyType

from keras_stss.config import ConfigError
from keras_stss.data.augment import may_flip
from keras_stss.data.pipeline import Protocol

_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class NamedProtocol:
    """One way to test.

    Args:
        meaning: a line for the user.
        views: clips and crops of each video.
        average: ``"softmax"`` or ``"logits"``: what is averaged over the views.
        wide: the frame's short side becomes 256/224 of ``data.crop`` (256 for 224), its aspect ratio is kept. Else
            ``data.resize`` counts, as in training.
        full_resolution: the model sees such squares as they are, 256 x 256 for 224, and not scaled to ``data.crop``.
    """

    meaning: str
    views: Protocol
    average: str = "softmax"
    wide: bool = False
    full_resolution: bool = False

    def data(self, data):
        """The run's :class:`keras_stss.config.DataConfig` with what the protocol changes."""
        if not self.wide:
            return data
        side = data.crop * 256 // 224
        return data.model_copy(update={"resize": side, "crop": side if self.full_resolution else data.crop})

    def check(self, labels):
        """Raises ConfigError where a view in the mirror would show another class."""
        sided = [] if self.views.crops != 10 else [text for text in labels if not may_flip(text)]
        if sided:
            shown = ", ".join(repr(text) for text in sided[:_SHOWN])
            raise ConfigError(
                f"ten crops show each clip in the mirror, too, but {len(sided)} of {len(labels)} labels name a side or "
                f"a turn ({shown}{', …' if len(sided) > _SHOWN else ''}); take a protocol of 1, 3 or 5 crops"
            )


#: {name: protocol}; ``evaluate`` takes 1x1 where no other is named. "Average prediction" of the papers is taken for the
#: mean of softmax, except where TSM's test script (mean of logits, which the names with its rules keep) is the source.
PROTOCOLS = MappingProxyType({
    "1x1": NamedProtocol("one clip, centre crop (SELFY; MotionSqueeze; TSM, efficient)", Protocol()),
    "2x1": NamedProtocol("two clips, centre crop (SELFY, with TSM's two clips)", Protocol(clips=2), "logits"),
    "10x1": NamedProtocol("ten clips spread evenly, centre crop (MotionSqueeze, Kinetics)", Protocol(clips=10)),
    "10x1-random": NamedProtocol(
        "ten clips drawn as in training, centre crop (MotionSqueeze, Something)", Protocol(clips=10, random=True)
    ),
    "10x3": NamedProtocol(
        "ten random clips, three crops of 256 scaled to 224 (STM)", Protocol(10, 3, random=True), wide=True
    ),
    "1x1-full": NamedProtocol(
        "one clip, the centre 256 x 256 as it is", Protocol(), "logits", wide=True, full_resolution=True
    ),
    "2x3-full": NamedProtocol(
        "two clips, three crops of 256 as they are (TSM, full resolution)",
        Protocol(2, 3), "logits", wide=True, full_resolution=True,
    ),
    "10x3-full": NamedProtocol(
        "ten clips spread evenly, three crops of 256 as they are (TSM, Kinetics)",
        Protocol(10, 3), "logits", wide=True, full_resolution=True,
    ),
    "1x5": NamedProtocol("one clip, corners and centre", Protocol(1, 5), "logits"),
    "1x10": NamedProtocol("one clip, corners and centre, each in the mirror, too (TSN)", Protocol(1, 10), "logits"),
})  # fmt: skip

DEFAULT = "1x1"


def find_protocol(name):
    """The protocol of a name; raises ConfigError with the names that there are."""
    if name not in PROTOCOLS:
        known = "\n".join(f"  {each:<12} {protocol.meaning}" for each, protocol in PROTOCOLS.items())
        raise ConfigError(f"no protocol {name!r}. There are:\n{known}")
    return PROTOCOLS[name]
