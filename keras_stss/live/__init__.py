"""A model that watches: frames of a camera, an address or a file, and what it says of them as they come.

A thread (:class:`Feed`) decodes the frames of a :class:`Source`. The thread that calls :func:`watch` takes the newest,
gives the model those that are due (:class:`Spacing`), and hands each with the last result to whatever shows it. What
comes while it is busy is dropped, so that it never lags.
"""

from keras_stss.live.feed import Feed, Frame
from keras_stss.live.model import LiveModel
from keras_stss.live.overlay import Overlay
from keras_stss.live.source import Source
from keras_stss.live.spacing import Spacing, spacing_of
from keras_stss.live.video_writer import VideoWriter
from keras_stss.live.watch import Figures, Result, watch

__all__ = [
    "Feed",
    "Figures",
    "Frame",
    "LiveModel",
    "Overlay",
    "Result",
    "Source",
    "Spacing",
    "VideoWriter",
    "spacing_of",
    "watch",
]
