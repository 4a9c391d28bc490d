"""Frames as a video file that browsers play."""

import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from keras_stss.data.annotations import DataError

_BT709, _LIMITED = 1, 1  # the numbers of ITU-T H.273


def encode_video(frames, rate, crf=20):
    """Frames as the bytes of an mp4 file that Chromium, Firefox and Safari play: H.264, 4:2:0, its index first.

    Args:
        frames: uint8 (T, H, W, 3), T > 0; odd sides grow by a row or column that repeats the last one.
        rate: frames a second, positive.
        crf: quality: 0 is without loss, 51 the worst; 18 looks the same as the frames.

    Raises:
        DataError: where PyAV comes without the encoder.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be uint8 (T, H, W, 3) and not empty. Received: {frames.dtype} {frames.shape}")
    if not rate > 0:
        raise ValueError(f"rate must be positive. Received: rate={rate}")
    if "libx264" not in av.codecs_available:
        raise DataError("this PyAV has no H.264 encoder (libx264; its wheels have it), so it cannot write videos")
    # Colours at half the size need even sides.
    frames = np.pad(frames, [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)], mode="edge")
    # What puts the index first reads the file again, so it must be one.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = _add_stream(container, frames.shape[1:3], Fraction(rate).limit_denominator(1001), crf)
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709")))
            container.mux(stream.encode())
        return path.read_bytes()


def _add_stream(container, size, rate, crf):
    stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "medium"})
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.thread_count = 1
    # A browser guesses the meaning of colours from the size where the file does not say it.
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED
    return stream
