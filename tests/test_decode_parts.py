"""Parts of videos, windows of frames, and what files of the wild are like: compared with plain decoding."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
import tensorflow as tf

from keras_stss.data import frames as limits
from keras_stss.data import video as video_module
from keras_stss.data.annotations import Clip
from keras_stss.data.decode import ClipError, read_clip, read_frames

COUNT = 90
EVEN = [40 * index for index in range(COUNT)]  # milliseconds
UNEVEN = np.cumsum([0, *np.random.default_rng(0).integers(10, 130, COUNT - 1)]).tolist()
LATE = [time + 777 for time in UNEVEN]
KINDS = {
    "h264.mp4": ("libx264", {"bf": "3", "x264-params": "keyint=12"}),
    "open.mkv": ("libx264", {"x264-params": "open-gop=1:keyint=15:bframes=3"}),
    "open.mp4": ("libx264", {"x264-params": "open-gop=1:keyint=15:bframes=3"}),
    "vp9.webm": ("libvpx-vp9", {"g": "20"}),
    "mpeg4.mp4": ("mpeg4", {"bf": "2", "g": "12"}),
    "h264.ts": ("libx264", {"bf": "3", "x264-params": "keyint=12"}),
    "mpeg4.avi": ("mpeg4", {"bf": "2", "g": "12"}),
}


def picture(number, height=32, width=48):
    """Eight bright or dark fields: the bits of the number."""
    frame = np.full((height, width, 3), 20, np.uint8)
    for bit in range(8):
        top, left = bit // 4 * height // 2, bit % 4 * width // 4
        if number >> bit & 1:
            frame[top : top + height // 2, left : left + width // 4] = 230
    return frame


def number_of(frame):
    fields = frame.reshape(2, frame.shape[0] // 2, 4, frame.shape[1] // 4, 3)[:, 4:-4, :, 3:-3].mean((1, 3, 4))
    return sum(int(field > 125) << bit for bit, field in enumerate(fields.ravel()))


def numbers(frames):
    return [number_of(frame) for frame in frames]


def write(path, times=EVEN, kind="mpeg4.mp4", frames=None, pix_fmt="yuv420p", codec=None, options=None):
    codec, options = (codec, options or {}) if codec else KINDS[kind]
    try:
        av.Codec(codec, "w")
    except av.FFmpegError:
        pytest.skip(f"no encoder {codec}")
    # AVI counts frames.
    base = Fraction(1, 25) if path.suffix == ".avi" else Fraction(1, 1000)
    frames = [picture(number) for number in range(len(times))] if frames is None else frames
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = base
        stream.codec_context.thread_count = 1
        stream.bit_rate = 600_000
        for time, frame in zip(times, frames, strict=True):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts, image.time_base = round(time / 1000 / base), base
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return str(path)


def expected(times, start, end):
    """The rule in plain words: shown first in [start, end); else the one that is seen at start."""
    seconds = (np.array(times) - times[0]) / 1000
    inside = [n for n, time in enumerate(seconds) if start - 1e-6 <= time < end - 1e-6]
    return inside or [max(n for n, time in enumerate(seconds) if time <= start)]


class TestParts:
    @pytest.mark.parametrize("times", [EVEN, UNEVEN, LATE], ids=["even", "uneven", "late"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_same_frames_as_from_the_beginning(self, tmp_path, kind, times):
        if kind.endswith("avi") and times is not EVEN:
            pytest.skip("AVI has no times")
        path = write(tmp_path / kind, times, kind)
        whole = read_frames(path, "video", np.arange)
        assert numbers(whole) == list(range(COUNT))
        rng, seconds = np.random.default_rng(1), (np.array(times) - times[0]) / 1000
        for turn in range(12):
            start = float(rng.choice(seconds) if turn % 3 == 0 else rng.uniform(0, seconds[-1]))
            end = start + rng.uniform(0.01, 1.5)
            part = read_frames(path, "video", np.arange, start, end)
            wanted = expected(times, start, end)
            assert numbers(part) == wanted, (start, end)
            assert (part == whole[wanted]).all()

    def test_one_seek_and_no_more_packets_than_needed(self, tmp_path, monkeypatch):
        path = write(tmp_path / "clip.mp4", kind="h264.mp4")
        fed, real = [], video_module._decode_timed
        monkeypatch.setattr(video_module, "_read_whole", None)
        monkeypatch.setattr(
            video_module, "_decode_timed", lambda runs, *rest: fed.extend(map(len, runs)) or real(runs, *rest)
        )
        assert numbers(read_frames(path, "video", np.arange, 2.0, 2.4)) == list(range(50, 60))
        assert len(fed) == 1 and fed[0] < COUNT / 2

    def test_choice_is_told_the_frames_of_the_part(self, tmp_path):
        told = []
        read_frames(write(tmp_path / "clip.mp4"), "video", lambda n: told.append(n) or [0], 1.0, 2.0)
        assert told == [25]

    def test_open_ends(self, tmp_path):
        path = write(tmp_path / "clip.mp4")
        assert numbers(read_frames(path, "video", np.arange, 3.0)) == list(range(75, COUNT))
        assert numbers(read_frames(path, "video", np.arange, None, 0.2)) == list(range(5))
        assert numbers(read_frames(path, "video", np.arange, 3.4, 99.0)) == list(range(85, COUNT))

    @pytest.mark.parametrize("kind", ["h264.mp4", "vp9.webm", "mpeg4.avi"])
    def test_after_the_end(self, tmp_path, kind):
        path = write(tmp_path / kind, kind=kind)
        with pytest.raises(ClipError, match="its part starts at 10 s, after the last of its 90 frames"):
            read_frames(path, "video", np.arange, 10.0, 12.0)

    def test_long_parts_are_read_twice(self, tmp_path, monkeypatch):
        path = write(tmp_path / "clip.mp4")
        monkeypatch.setattr(video_module, "_KEPT_BYTES", 500)
        assert numbers(read_frames(path, "video", np.arange, 1.0, 3.0)) == list(range(25, 75))

    def test_a_folder_has_no_times(self, tmp_path):
        with pytest.raises(ValueError, match="belong to videos"):
            read_frames(str(tmp_path), "frames", np.arange, 1.0)

    def test_clips(self, tmp_path):
        path = write(tmp_path / "clip.mp4")
        assert numbers(read_clip(Clip("a", path, 0, "video", start=1.0, end=1.2), np.arange)) == list(range(25, 30))
        assert numbers(read_clip(Clip("a", path, 0, "video", frames=(5, 9)), np.arange)) == [5, 6, 7, 8]
        assert numbers(read_clip(Clip("a", path, 0, "video", frames=(80, 999)), lambda n: [0, n - 1])) == [80, 89]
        assert len(read_clip(Clip("a", path, 0, "video"), np.arange)) == COUNT
        with pytest.raises(ClipError, match="its part starts at frame 90"):
            read_clip(Clip("a", path, 0, "video", frames=(90, 95)), np.arange)


class TestLessWork:
    """Frames that nothing depends on are not decoded; what comes out is the same."""

    @pytest.mark.parametrize("kind", ["h264.mp4", "open.mkv", "vp9.webm", "mpeg4.mp4"])
    def test_same_frames(self, tmp_path, kind):
        path = write(tmp_path / kind, UNEVEN, kind)
        with av.open(path) as container:
            plain = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        rng = np.random.default_rng(0)
        for size in (1, 1, 2, 3, 8, 40):
            wanted = np.sort(rng.integers(0, COUNT, size))
            assert (read_frames(path, "video", lambda n, wanted=wanted: wanted) == plain[wanted]).all()

    def test_groups_without_a_wanted_frame_are_left_out(self, tmp_path, monkeypatch):
        path = write(tmp_path / "clip.mp4", kind="h264.mp4")
        runs, real = [], video_module._needed_runs
        monkeypatch.setattr(video_module, "_needed_runs", lambda *given: runs.extend(real(*given)) or runs)
        assert numbers(read_frames(path, "video", lambda n: [2, 50, 52])) == [2, 50, 52]
        assert len(runs) == 2 and sum(map(len, runs)) < COUNT / 2


class TestWindows:
    @pytest.mark.parametrize("box", [(0, 0, 37, 51), (3, 7, 20, 21), (36, 50, 1, 1), (16, 16, 8, 8), (15, 17, 17, 16)])
    @pytest.mark.parametrize("kind", ["jpeg", "png", "video"])
    def test_same_bytes_as_cutting_the_whole_frame(self, tmp_path, box, kind):
        rng = np.random.default_rng(0)
        pictures = rng.integers(0, 256, (3, 37, 51, 3), dtype=np.uint8)
        if kind == "video":
            path = write(tmp_path / "clip.webm", [0, 40, 80], frames=pictures, codec="libvpx-vp9")
        else:
            path = str(tmp_path)
            for number, content in enumerate(pictures):
                encode = tf.io.encode_jpeg if kind == "jpeg" else tf.io.encode_png
                (tmp_path / f"{number}.jpg").write_bytes(encode(content).numpy())
        kind = "video" if kind == "video" else "frames"
        whole = read_frames(path, kind, np.arange)
        top, left, height, width = box
        part = read_frames(path, kind, np.arange, window=lambda *size: box if size == (37, 51) else None)
        assert (part == whole[:, top : top + height, left : left + width]).all()
        assert (read_frames(path, kind, np.arange, window=lambda *_: None) == whole).all()

    @pytest.mark.parametrize("box", [(0, 0, 38, 51), (-1, 0, 5, 5), (0, 50, 5, 2), (0, 0, 0, 1)])
    def test_outside(self, tmp_path, box):
        (tmp_path / "1.jpg").write_bytes(tf.io.encode_jpeg(np.zeros((37, 51, 3), np.uint8)).numpy())
        with pytest.raises(ValueError, match="window must give a part of the 37x51 frame"):
            read_frames(str(tmp_path), "frames", np.arange, window=lambda height, width: box)

    def test_in_pixels_of_the_upright_frame(self, tmp_path):
        path = str(tmp_path / "clip.mp4")
        with av.open(path, "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            stream.set_display_rotation(90)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(3), format="rgb24")))
            container.mux(stream.encode())
        sizes = []
        whole = read_frames(path, "video", np.arange)
        part = read_frames(path, "video", np.arange, window=lambda *size: sizes.append(size) or (8, 0, 40, 16))
        assert sizes == [(48, 32)] and (part == whole[:, 8:, :16]).all()


class TestFormats:
    @pytest.mark.parametrize(
        ("codec", "pix_fmt", "suffix"),
        [
            ("ffv1", "yuv420p10le", "mkv"),
            ("ffv1", "gray", "mkv"),
            ("ffv1", "gray10le", "mkv"),
            ("ffv1", "yuv444p", "mkv"),
            ("ffv1", "bgra", "mkv"),
            ("png", "rgb24", "mov"),
        ],
    )
    def test_pixels(self, tmp_path, codec, pix_fmt, suffix):
        path = write(tmp_path / f"clip.{suffix}", EVEN[:6], codec=codec, pix_fmt=pix_fmt)
        frames = read_frames(path, "video", np.arange)
        assert frames.dtype == np.uint8 and numbers(frames) == list(range(6))
        assert abs(int(frames[0].mean()) - 20) < 4

    @pytest.mark.parametrize("size", [(1, 1), (31, 33), (33, 5), (17, 47)])
    @pytest.mark.parametrize(("codec", "suffix"), [("libvpx-vp9", "webm"), ("ffv1", "mkv"), ("mjpeg", "avi")])
    def test_odd_sizes(self, tmp_path, codec, suffix, size):
        frames = np.full((3, *size, 3), 90, np.uint8)
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        path = write(tmp_path / f"clip.{suffix}", EVEN[:3], frames=frames, codec=codec, pix_fmt=pix_fmt)
        found = read_frames(path, "video", lambda n: [0, n - 1])
        assert found.shape == (2, *size, 3) and np.abs(found.astype(int) - 90).max() < 6

    def test_fewer_frames_than_wanted(self, tmp_path):
        path = write(tmp_path / "clip.mp4", EVEN[:2])
        assert numbers(read_frames(path, "video", lambda n: np.arange(8) * n // 8)) == [0] * 4 + [1] * 4

    def test_flow_beside_the_frames(self, tmp_path):
        for number in range(3):
            for prefix in ("img", "flow_x", "flow_y"):
                content = picture(number) if prefix == "img" else picture(255)
                (tmp_path / f"{prefix}_{number:05d}.jpg").write_bytes(tf.io.encode_jpeg(content, quality=95).numpy())
        assert numbers(read_frames(str(tmp_path), "frames", np.arange)) == [0, 1, 2]


class TestLimits:
    def reason(self, path, kind="video", choose=np.arange, **given):
        with pytest.raises(ClipError) as caught:
            read_frames(str(path), kind, choose, **given)
        return str(caught.value)

    @pytest.mark.parametrize("size", [(8, 600), (600, 8)])
    def test_thin_frames(self, tmp_path, size):
        frames = np.zeros((2, *size, 3), np.uint8)
        path = write(tmp_path / "clip.mkv", EVEN[:2], frames=frames, codec="ffv1")
        assert "one side must not exceed 50 times the other" in self.reason(path)
        (tmp_path / "f").mkdir()
        (tmp_path / "f" / "1.jpg").write_bytes(tf.io.encode_jpeg(frames[0]).numpy())
        (tmp_path / "f" / "2.png").write_bytes(tf.io.encode_png(frames[0]).numpy())
        for wanted in (0, 1):
            assert "one side" in self.reason(tmp_path / "f", "frames", lambda n, wanted=wanted: [wanted])

    def test_frames_far_too_large(self, tmp_path, monkeypatch):
        """FFmpeg itself refuses them, before it has made room for one."""
        path = write(tmp_path / "clip.mp4")
        monkeypatch.setattr(limits, "MAX_PIXELS", 100)
        assert "limit" in self.reason(path)

    @pytest.mark.parametrize("size", [(60_000, 60_000), (1, 60_000)])
    @pytest.mark.parametrize("kind", ["png", "jpeg"])
    def test_small_pictures_that_declare_much(self, tmp_path, kind, size):
        encode = tf.io.encode_jpeg if kind == "jpeg" else tf.io.encode_png
        content = bytearray(encode(picture(1)).numpy())
        if kind == "png":
            content[16:24] = size[1].to_bytes(4, "big") + size[0].to_bytes(4, "big")
        else:
            place = content.index(b"\xff\xc0") + 5
            content[place : place + 4] = size[0].to_bytes(2, "big") + size[1].to_bytes(2, "big")
        (tmp_path / f"1.{kind}").write_bytes(content)
        assert f"frames of 60000x{size[0]} pixels" in self.reason(tmp_path, "frames")

    def test_work(self, tmp_path, monkeypatch):
        path = write(tmp_path / "clip.mp4")
        monkeypatch.setattr(limits, "MAX_DECODED", 40 * 32 * 48)
        assert len(read_frames(path, "video", lambda n: [39])) == 1
        assert "too long: 41 frames of 48x32" in self.reason(path, choose=lambda n: [40])
        assert len(read_frames(path, "video", lambda n: [5], 2.0, 2.8)) == 1
        assert "too long" in self.reason(path, start=0.0, end=3.0)

    def test_memory(self, tmp_path, monkeypatch):
        path = write(tmp_path / "clip.mp4")
        monkeypatch.setattr(limits, "MAX_KEPT", 10 * 32 * 48 * 3)
        assert len(read_frames(path, "video", lambda n: np.arange(10))) == 10
        assert "11 frames of 48x32" in self.reason(path, choose=lambda n: np.arange(11))
        assert len(read_frames(path, "video", np.arange, window=lambda *_: (0, 0, 4, 4))) == COUNT

    def test_frames_of_a_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(video_module, "MAX_FRAMES", 80)
        assert self.reason(write(tmp_path / "clip.mp4")) == "more than 80 frames"

    def test_a_pipe_among_the_frames(self, tmp_path):
        os.mkfifo(tmp_path / "1.jpg")
        assert "frame 1.jpg is no file" in self.reason(tmp_path, "frames")
