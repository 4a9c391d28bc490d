"""Clip files -> uint8 frames: videos by PyAV, folders of frames by TensorFlow's picture decoders.

Only the frames that are asked for are converted and kept. Whatever is wrong with a clip comes back as
:class:`ClipError` with a reason that a human understands. Safe to call from many threads.
"""

import itertools
import os
import struct

import av
import av.logging
import numpy as np
import tensorflow as tf

from keras_stss.data.annotations import natural_key

MAX_PIXELS = 64_000_000  # a frame; twice an 8K one. Anything larger is a damaged header or an attack on memory.
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")

# Packets are kept between counting and decoding up to this size; longer videos are read twice instead.
_KEPT_BYTES = 64 * 2**20
# Frames that a decoder may hold back to put them in order. More than that behind: some packets carry no frame.
_REORDERED = {"h264": 16, "hevc": 16}
# A file counts as truncated where more than this share, and more than these frames, of the declared length is missing.
# Whole files in the wild declare a frame or two too many (85 for 84), or miss the duration of the last frame.
_MISSING_SHARE, _MISSING_FRAMES = 0.05, 3

# Tags that are no UTF-8 say nothing about the pictures. PyAV 19 takes no such argument any more.
_LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}

av.logging.set_libav_level(av.logging.PANIC)  # FFmpeg's own lines on stderr name no clip; ClipError does


class ClipError(Exception):
    """A clip that cannot be read; the text is the reason, without the path."""


def read_frames(path, kind, choose):
    """Decodes some frames of a clip at their native size.

    Args:
        path: video file or folder of frames.
        kind: ``"video"`` or ``"frames"``.
        choose: function of the number of frames n (at least 1) that gives the indices wanted, integers from 0 to
            n - 1 that never fall; they may repeat. It may be called more than once: where a video turns out to hold
            another number of frames than its packets promise, the choice is made anew. So it must be a pure function.

    Returns:
        uint8 array (T, H, W, 3), RGB, rotated as the file says, values 0 to 255.

    Raises:
        ClipError: where the clip cannot be read, with the reason.
    """
    path = os.path.abspath(path)
    if not os.path.exists(path):
        raise ClipError("no such file" if kind == "video" else "no such folder")
    read = _read_video if kind == "video" else _read_folder
    try:
        return read(path, choose)
    except MemoryError:
        raise ClipError("not enough memory for its frames") from None
    except OSError as error:
        raise ClipError(f"cannot be read: {error.strerror or error}") from None


# --- videos -----------------------------------------------------------------------------------------------------------


def _read_video(path, choose, true_count=None):
    # A pipe or device would block for ever.
    if not os.path.isfile(path):
        raise ClipError("is a folder, not a video" if os.path.isdir(path) else "not a regular file")
    if os.path.getsize(path) == 0:
        raise ClipError("empty file (zero bytes)")
    container, stream = _open(path)
    with container:
        packets, count = _scan(container, stream)
        count = true_count or count
        indices = _chosen(choose, count)
        if packets is None:
            container, stream = _open(path)
            packets = container.demux(stream)
        with container:
            frames, seen = _decode(packets, stream, set(indices))
    if seen is None or seen == count:
        return _stack([frames[index] for index in indices])
    if true_count is not None:
        raise ClipError("damaged: gives another number of frames each time it is read")
    return _read_video(path, choose, seen)


def _open(path):
    try:
        # The whitelist: a playlist in video's clothing must not fetch from the network.
        container = av.open(path, options={"protocol_whitelist": "file"}, **_LENIENT)
    except PermissionError:
        raise
    except (av.FFmpegError, ValueError):
        raise ClipError("not a video, or its header is damaged") from None
    if not container.streams.video:
        container.close()
        raise ClipError("no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        container.close()
        raise ClipError("its codec is unknown here")
    # Threads come from decoding many clips at a time; more inside a decoder only add delay.
    stream.codec_context.thread_count = 1
    stream.codec_context.thread_type = "NONE"
    return container, stream


def _scan(container, stream):
    """(packets of the video, or None where they are too large to keep; number of frames that they promise)."""
    _check_size(stream.codec_context.width, stream.codec_context.height)
    kept, size, count, is_cut, end = [], 0, 0, False, 0.0
    try:
        # All streams: where sound outlasts the pictures, it is what the declared duration measures.
        for packet in container.demux():
            if packet.size == 0:
                continue
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index == stream.index:
                is_cut |= packet.is_corrupt
                count += _holds_frame(packet, stream)
                size += packet.size
                if size <= _KEPT_BYTES:
                    kept.append(packet)
                else:
                    kept.clear()
    except av.FFmpegError:
        raise ClipError("damaged: its packets cannot be read") from None
    if count == 0:
        raise ClipError("a header, but no frames")
    if is_cut or _falls_short(container, stream, end):
        raise ClipError("truncated: ends before its header says")
    return (kept if size <= _KEPT_BYTES else None), count


def _holds_frame(packet, stream):
    # Encoders that pack B-frames fill the gap that they leave with one-byte packets.
    return not packet.is_discard and not (packet.size == 1 and stream.codec_context.name == "mpeg4")


def _falls_short(container, stream, end):
    formats = container.format.name.split(",")
    declared = None
    if "avi" in formats:
        # Its duration is estimated from the size of the file where that falls short; the frame count is the header's.
        declared = stream.frames * stream.time_base
    elif "mp4" in formats:
        declared = stream.duration and stream.duration * stream.time_base
    elif "matroska" in formats:
        declared = container.duration and container.duration / av.time_base
    # Other formats have no declared length: what FFmpeg gives is estimated from the content.
    if not declared:
        return False
    frame_length = 1 / float(stream.average_rate or 25)
    return float(declared) - end > max(_MISSING_SHARE * float(declared), _MISSING_FRAMES * frame_length)


def _decode(packets, stream, wanted):
    """({index: frame} of the wanted ones; number of frames in all, None where it stopped after the last wanted one)."""
    context, reformatter = stream.codec_context, av.video.reformatter.VideoReformatter()
    last, reordered = max(wanted), _REORDERED.get(context.name, 2)
    frames, seen, fed = {}, 0, 0
    try:
        for packet in itertools.chain(packets, [None]):
            if packet is not None and packet.size == 0:
                continue  # demux ends with one; None empties the decoder
            fed += packet is not None and _holds_frame(packet, stream)
            for frame in context.decode(packet):
                if seen in wanted:
                    frames[seen] = _to_rgb(frame, reformatter)
                seen += 1
            if seen > last and 0 <= fed - seen <= reordered:
                return frames, None
    except (av.FFmpegError, ValueError):
        raise ClipError(f"damaged: frame {seen} cannot be decoded") from None
    if seen == 0:
        raise ClipError("no frame can be decoded")
    return frames, seen


def _to_rgb(frame, reformatter):
    _check_size(frame.width, frame.height)
    # One reformatter a clip keeps its tables; one thread, since clips are decoded side by side.
    picture = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return np.rot90(picture, round(frame.rotation / 90)) if frame.rotation else picture


# --- folders of frames ------------------------------------------------------------------------------------------------


def _read_folder(path, choose):
    if not os.path.isdir(path):
        raise ClipError("a file, not a folder of frames")
    # Names that start with a dot are leftovers of other systems, not pictures.
    names = [name for name in os.listdir(path) if name.lower().endswith(FRAME_SUFFIXES) and not name.startswith(".")]
    if not names:
        raise ClipError("a folder without frames (*.jpg, *.jpeg, *.png)")
    names.sort(key=natural_key)
    indices = _chosen(choose, len(names))
    frames = {index: _read_picture(os.path.join(path, names[index])) for index in sorted(set(indices))}
    return _stack([frames[index] for index in indices])


def _read_picture(path):
    name = os.path.basename(path)
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ClipError(f"frame {name} cannot be read: {error.strerror}") from None
    try:
        with tf.device("CPU:0"):
            if content.startswith(b"\xff\xd8"):
                height, width, _ = tf.io.extract_jpeg_shape(content).numpy()
                _check_size(width, height)
                return tf.io.decode_jpeg(content, channels=3).numpy()
            if content.startswith(b"\x89PNG") and len(content) > 24:
                _check_size(*struct.unpack(">II", content[16:24]))
                return tf.io.decode_png(content, channels=3).numpy()
    except tf.errors.OpError:
        raise ClipError(f"frame {name} is damaged or cut short") from None
    raise ClipError(f"frame {name} is neither JPEG nor PNG")


# --- both -------------------------------------------------------------------------------------------------------------


def _chosen(choose, count):
    indices = np.asarray(choose(count))
    if indices.ndim != 1 or indices.size == 0 or indices.dtype.kind not in "iu":
        raise ValueError(f"choose must give a list of integers. Received: {indices!r}")
    if indices[0] < 0 or indices[-1] >= count or (np.diff(indices) < 0).any():
        raise ValueError(f"choose must give indices from 0 to {count - 1} that never fall. Received: {indices!r}")
    return indices.tolist()


def _check_size(width, height):
    if int(width) * int(height) > MAX_PIXELS:
        raise ClipError(f"frames of {width}x{height} pixels; the limit is {MAX_PIXELS // 10**6} megapixels")


def _stack(frames):
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise ClipError(f"frames of different sizes: {' and '.join(f'{w}x{h}' for h, w, _ in sorted(sizes))}")
    return np.stack(frames)
