"""Frames of a video file by PyAV, without those that no wanted one depends on.

A video is read by the times of its packets where they can be trusted. Where they cannot (AVI, missing or repeated
times, frames that come out otherwise than promised), frames are counted from the first one on.
"""

import bisect
import io
import itertools
import math
import os
from fractions import Fraction

import av
import av.logging
import numpy as np

from keras_stss.data import frames as limits
from keras_stss.data.annotations import storage
from keras_stss.data.frames import ClipError, Kept, check_size, check_work, chosen

MAX_FRAMES = 2_000_000  # a file: 18 hours at 30 a second
MAX_REMOTE_BYTES = 2**29  # a remote file, which is in memory as a whole while a clip of it is decoded

# Packets are kept between counting and decoding up to this size; longer videos are read twice instead.
_KEPT_BYTES = 64 * 2**20
# Frames that a decoder may hold back to put them in order. More than that behind: some packets carry no frame.
_REORDERED = {"h264": 16, "hevc": 16}
# Decoders that give nothing, or an error, where they start at a frame that is no true key frame.
_STARTS_AT_KEYS = ("h264", "vp9", "libdav1d")
# Decoders that look for each frame anew whether they may skip it.
_SKIPS = ("h264", "hevc", "mpeg4", "mpeg2video")
# Decoders that give frames in the order in which they take them. Nothing has to be found out about such a video by
# decoding its first frame twice, which would take a tenth of the time of a short clip.
_IN_ORDER = ("vp8", "vp9", "libvpx", "libvpx-vp9", "libdav1d", "libaom-av1", "av1")
_PROBED = ",".join(sorted(av.codecs_available.difference(_IN_ORDER)))
# A file counts as truncated where more than this share, and more than these frames, of the declared length is missing.
# Whole files in the wild declare a frame or two too many (85 for 84), or miss the duration of the last frame.
_MISSING_SHARE, _MISSING_FRAMES = 0.05, 3
_TOLERANCE = Fraction(1, 100_000)  # seconds: annotated times are rounded, as are those of a file's start
_LONGEST = 10**9  # seconds: a time beyond says the same, and could not be counted in a file's units
_STEPS_BACK = (0, 1, 10)  # seconds: some containers seek by the time of decoding, just before that of showing

# Tags that are no UTF-8 say nothing about the pictures. PyAV 19 takes no such argument any more.
_LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}

av.logging.set_libav_level(av.logging.PANIC)  # FFmpeg's own lines on stderr name no clip; ClipError does


def read_video(path, choose, start, end, cutter):
    """As :func:`keras_stss.data.decode.read_frames`, with a :class:`~keras_stss.data.frames.Cutter`.

    In place of a path it takes an object whose ``open()`` gives a file from its start.
    """
    if isinstance(path, str):
        path = _checked(path)
    frames, start, end = None, start and min(start, _LONGEST), end and min(end, _LONGEST)
    if start is not None or end is not None:
        frames = _read_part(path, start or 0, end, choose, cutter)
    return _read_whole(path, start or 0, end, choose, cutter) if frames is None else frames


def describe(path):
    """What the header of a video file says: codec, frames a second, length in seconds (None where it does not say)."""
    container, stream = _open(_checked(path))
    with container:
        rate = float(stream.average_rate) if stream.average_rate else None
        seconds = container.duration / av.time_base if container.duration else None
        return {"codec": stream.codec_context.name, "rate": rate, "seconds": seconds}


_EMPTY = "empty file (zero bytes)"


class _Remote:
    """A remote video, which is fetched at once and may be opened more than once."""

    def __init__(self, path):
        self.name, self._content = os.path.basename(path), storage.read_bytes(path, MAX_REMOTE_BYTES)
        if self._content is None:
            raise ClipError(
                f"more than {MAX_REMOTE_BYTES // 2**20} MiB: remote videos are read as a whole; copy it to a disk, "
                "mount its folder, or cut it"
            )
        if not self._content:
            raise ClipError(_EMPTY)

    def open(self):
        file = _NamedBytes(self._content)
        file.name = self.name
        return file


class _NamedBytes(io.BytesIO):
    """With a name, by which FFmpeg may guess the format."""


def _checked(path):
    """The path of a file that may be opened, or what stands for a remote one."""
    if storage.is_remote(path):
        return _Remote(path)
    # A pipe or device would block for ever.
    if not os.path.isfile(path):
        raise ClipError("is a folder, not a video" if os.path.isdir(path) else "not a regular file")
    if os.path.getsize(path) == 0:
        raise ClipError(_EMPTY)
    return path


def _open(path):
    # The whitelist: a playlist in video's clothing must not fetch from the network. FFmpeg itself decodes a little to
    # find out what is inside, so it has to know a limit: twice ours, as it does not tell the size of what it refuses.
    most = {"max_pixels": str(2 * limits.MAX_PIXELS)}
    options = {"protocol_whitelist": "file", **most}
    container = _container(path, {**options, "codec_whitelist": _PROBED})
    if any(context is not None and not context.width for context in _contexts(container)):
        container.close()
        container = _container(path, options)  # the first frame has to tell its size
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
    stream.codec_context.options = most
    return container, stream


def _contexts(container):
    return [stream.codec_context for stream in container.streams.video]


def _container(path, options):
    try:
        return av.open(path if isinstance(path, str) else path.open(), options=options, **_LENIENT)
    except PermissionError:
        raise
    except (av.FFmpegError, ValueError):
        raise ClipError("not a video, or its header is damaged") from None


def _read_part(path, start, end, choose, cutter):
    """Frames of a part, from a key frame on; None where that does not surely lead to the right ones."""
    container, stream = _open(path)
    with container:
        if not _has_times(container):
            return None
        check_size(stream.codec_context.width, stream.codec_context.height)
        low, high = _ticks(container, stream, start), None if end is None else _ticks(container, stream, end)
        for step in _STEPS_BACK:
            entry = low - int(step / stream.time_base)
            kept, times, key = _scan_part(container, stream, entry, high)
            if times is None:
                return None
            if key is not None and (key <= low or key <= (stream.start_time or 0)):
                break
        else:
            return None
        inside = _inside(times, low, high)
        if not inside:
            return None  # beyond the end, as it seems: the whole file tells
        indices = chosen(choose, len(inside))
        if kept is None:
            kept = _packets_from(container, stream, entry, high)
        frames = Kept([inside[index] for index in indices])
        is_read = _decode_timed([kept], stream, times, frames, cutter)
    return frames.frames if is_read else None


def _scan_part(container, stream, entry, high):
    """(packets, or None where they are too large to keep; their sorted times; that of the first), from a seek on.

    The times are None where they cannot be trusted.
    """
    kept, size, times, key = [], 0, [], None
    try:
        for packet in _packets_from(container, stream, entry, high):
            if packet.is_corrupt:
                raise ClipError("truncated: ends before its header says")
            if key is None:
                key = packet.pts
                if not packet.is_keyframe or key is None:
                    return None, None, None
            if _holds_frame(packet, stream):
                times.append(packet.pts)
            size += packet.size
            kept = kept if size <= _KEPT_BYTES else []
            if size <= _KEPT_BYTES:
                kept.append(packet)
            check_work(len(times), stream)
    except av.FFmpegError:
        return None, None, None
    return (kept if size <= _KEPT_BYTES else None), _trusted(times), key


def _packets_from(container, stream, entry, high):
    container.seek(max(entry, 0), stream=stream, backward=True)
    for packet in container.demux(stream):
        # Nothing is shown before it is decoded.
        if high is not None and packet.dts is not None and packet.dts >= high:
            return
        if packet.size:
            yield packet


def _inside(times, low, high):
    """The sorted times from low to before high; the one before them where there is none."""
    first = bisect.bisect_left(times, low)
    after = len(times) if high is None else bisect.bisect_left(times, high)
    if first == after and 0 < first < len(times):
        first -= 1
    return times[first:after]


def _ticks(container, stream, seconds):
    """Seconds from the start of the file (as FFmpeg's own options count them) in the stream's units, rounded up."""
    origin = Fraction(container.start_time or 0, av.time_base)
    return math.ceil((Fraction(seconds) + origin - _TOLERANCE) / stream.time_base)


def _has_times(container):
    # AVI has none: what FFmpeg gives for frames that change places is made up.
    return "avi" not in container.format.name.split(",")


def _trusted(times):
    """The times sorted; None where one is missing or there twice."""
    return None if None in times or len(set(times)) < len(times) else sorted(times)


def _read_whole(path, start, end, choose, cutter, true_count=None):
    """Frames of the whole video, or of a part of it by counting; ``true_count`` where a first decoding found it."""
    container, stream = _open(path)
    with container:
        times = []
        packets, count = _scan(container, stream, times)
        times = _trusted(times) if _has_times(container) and len(times) == count else None
        count = true_count or count
        first, after = _span(container, stream, times, count, start, end)
        indices = [first + index for index in chosen(choose, after - first)]
        check_work(indices[-1] + 1, stream)
        if packets is not None and times is not None and true_count is None:
            frames = Kept([times[index] for index in indices])
            if _decode_timed(_needed_runs(packets, stream, frames), stream, times, frames, cutter):
                return frames.frames
            packets = None  # the decoder has to begin anew
        if packets is None:
            container, stream = _open(path)
            packets = container.demux(stream)
        with container:
            frames = Kept(indices)
            seen = _decode(packets, stream, frames, indices[-1], cutter)
    if seen is None or seen == count:
        return frames.frames
    if true_count is not None:
        raise ClipError("damaged: gives another number of frames each time it is read")
    return _read_whole(path, start, end, choose, cutter, seen)


def _span(container, stream, times, count, start, end):
    """First frame and the one after the last, by number, of the part from start to end."""
    if start == 0 and end is None:
        return 0, count
    low = _ticks(container, stream, start)
    high = None if end is None else _ticks(container, stream, end)
    if times is None or len(times) != count:
        rate = stream.average_rate or 25
        times = range(count)
        low, high = math.ceil(start * rate - _TOLERANCE), None if end is None else math.ceil(end * rate - _TOLERANCE)
    inside = _inside(times, low, high)
    if not inside and low > times[-1]:
        raise ClipError(f"its part starts at {start:.6g} s, after the last of its {count} frames")
    first = bisect.bisect_left(times, inside[0] if inside else low)
    return first, first + max(len(inside), 1)


def _scan(container, stream, times):
    """(packets of the video, or None where they are too large to keep; number of frames that they promise).

    Their times are added to ``times``.
    """
    check_size(stream.codec_context.width, stream.codec_context.height)
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
                if _holds_frame(packet, stream):
                    count += 1
                    times.append(packet.pts)
                size += packet.size
                if size <= _KEPT_BYTES:
                    kept.append(packet)
                else:
                    kept.clear()
                if count > MAX_FRAMES:
                    raise ClipError(f"more than {MAX_FRAMES} frames")
    except av.FFmpegError:
        raise ClipError("damaged: its packets cannot be read") from None
    if count == 0:
        raise ClipError("a header, but no frames")
    if is_cut or falls_short(container, stream, end):
        raise ClipError("truncated: ends before its header says")
    return (kept if size <= _KEPT_BYTES else None), count


def _holds_frame(packet, stream):
    # Encoders that pack B-frames fill the gap that they leave with one-byte packets.
    return not packet.is_discard and not (packet.size == 1 and stream.codec_context.name == "mpeg4")


def falls_short(container, stream, end):
    """Whether a file whose last packet ends at ``end`` seconds is clearly shorter than its header says."""
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


def _needed_runs(packets, stream, wanted):
    """The packets to decode, in runs that each begin at a key frame: those of groups with a wanted frame in them."""
    starts = [number for number, packet in enumerate(packets) if number == 0 or packet.is_keyframe]
    if stream.codec_context.name not in _STARTS_AT_KEYS:
        starts = [0]
    groups = [packets[first:after] for first, after in zip(starts, [*starts[1:], None], strict=True)]
    needed = set()
    for number, group in enumerate(groups):
        inside = [packet.pts for packet in group if packet.pts in wanted]
        if inside:
            needed.add(number)
            # What is shown before the key frame that it follows depends on the group before.
            if number and (group[0].pts is None or min(inside) < group[0].pts):
                needed.add(number - 1)
    runs = []
    for number in sorted(needed):
        if runs and number - 1 in needed:
            runs[-1] += groups[number]
        else:
            runs.append(groups[number])
    return runs


def _decode_timed(runs, stream, times, wanted, cutter):
    """Whether it gave all the wanted ones, by time; not where the frames' times are not those of the packets.

    Frames that no other depends on are left out by the decoder, where they are not wanted. Once the first one has come,
    the stream has its true size, which the header may have made smaller than it is.
    """
    context, reformatter = stream.codec_context, av.video.reformatter.VideoReformatter()
    promised, last, count = set(times), None, bisect.bisect_right(times, wanted.last)
    can_skip, skips = context.name in _SKIPS, False
    try:
        for number, run in enumerate(runs):
            if number:
                context.flush_buffers()
            for packet in itertools.chain(run, [None]):
                if can_skip and packet is not None and skips == (packet.pts in wanted):
                    skips = not skips
                    context.skip_frame = "NONREF" if skips else "DEFAULT"
                for frame in context.decode(packet):
                    if frame.pts not in promised or (last is not None and frame.pts <= last):
                        return False
                    if last is None:
                        check_work(count, stream)
                    last = frame.pts
                    if last in wanted:
                        wanted[last] = cutter.cut(_to_rgb(frame, reformatter), len(wanted))
                if wanted.is_full:
                    return True
    except (av.FFmpegError, ValueError):
        pass  # counting finds the reason
    return False


def _decode(packets, stream, wanted, last, cutter):
    """Gives the wanted ones, by number; number of frames in all, None where it stopped after the last wanted one."""
    context, reformatter = stream.codec_context, av.video.reformatter.VideoReformatter()
    reordered, seen, fed = _REORDERED.get(context.name, 2), 0, 0
    try:
        for packet in itertools.chain(packets, [None]):
            if packet is not None and packet.size == 0:
                continue  # demux ends with one; None empties the decoder
            fed += packet is not None and _holds_frame(packet, stream)
            for frame in context.decode(packet):
                if not seen:
                    check_work(last + 1, stream)
                if seen in wanted:
                    wanted[seen] = cutter.cut(_to_rgb(frame, reformatter), len(wanted))
                seen += 1
            if seen > last and 0 <= fed - seen <= reordered:
                return None
    except (av.FFmpegError, ValueError):
        if not seen and not context.width:
            most = limits.MAX_PIXELS // 10**6
            raise ClipError(f"damaged, or frames far beyond the limit of {most} megapixels") from None
        raise ClipError(f"damaged: frame {seen} cannot be decoded") from None
    if seen == 0:
        raise ClipError("no frame can be decoded")
    return seen


def _to_rgb(frame, reformatter):
    check_size(frame.width, frame.height)
    # One reformatter a clip keeps its tables; one thread, since clips are decoded side by side.
    plane = reformatter.reformat(frame, format="rgb24", threads=1).planes[0]
    picture = np.ndarray((plane.height, plane.width, 3), np.uint8, plane, strides=(plane.line_size, 3, 1))
    return np.rot90(picture, round(frame.rotation / 90)) if frame.rotation else picture
