import os
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import tensorflow as tf

from keras_stss.data import frames as frames_module
from keras_stss.data import video as video_module
from keras_stss.data.decode import ClipError, read_frames

CODECS = {"libx264": "mp4", "libvpx-vp9": "webm", "mpeg4": "avi", "mjpeg": "mkv"}


def is_available(codec):
    try:
        av.Codec(codec, "w")
    except av.FFmpegError:
        return False
    return True


def brightness(index):
    return 20 + 7 * index


def picture(index, height=32, width=48):
    """A grey frame whose brightness tells its index."""
    return np.full((height, width, 3), brightness(index), np.uint8)


def indices_of(frames):
    return np.round((frames.mean((1, 2, 3)) - 20) / 7).astype(int).tolist()


def write(path, frames=None, codec="mpeg4", rotation=None, options=None, container_options=None, **settings):
    frames = [picture(index) for index in range(30)] if frames is None else frames
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=15, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        stream.bit_rate = 400_000
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def write_frames(folder, count=12, height=32, width=48):
    folder.mkdir()
    for index in range(count):
        content = tf.io.encode_jpeg(picture(index, height, width), quality=95).numpy()
        (folder / f"img_{index + 1}.jpg").write_bytes(content)
    return str(folder)


def read_all(path, kind="video"):
    return read_frames(path, kind, np.arange)


def reason_of(path, kind="video", choose=np.arange):
    with pytest.raises(ClipError) as caught:
        read_frames(str(path), kind, choose)
    return str(caught.value)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write(tmp_path_factory.mktemp("video") / "clip.avi")


class TestVideos:
    @pytest.mark.parametrize("codec", CODECS)
    def test_every_frame_by_its_index(self, tmp_path, codec):
        if not is_available(codec):
            pytest.skip(f"no encoder {codec}")
        path = write(tmp_path / f"clip.{CODECS[codec]}", codec=codec)
        frames = read_all(path)
        assert frames.shape == (30, 32, 48, 3) and frames.dtype == np.uint8
        assert indices_of(frames) == list(range(30))
        wanted = [0, 3, 3, 17, 29]
        assert indices_of(read_frames(path, "video", lambda n: wanted)) == wanted
        assert indices_of(read_frames(path, "video", lambda n: [4])) == [4]

    def test_colours_are_red_green_blue(self, tmp_path):
        red = np.zeros((32, 48, 3), np.uint8) + np.array([220, 30, 60], np.uint8)
        frames = read_all(write(tmp_path / "red.mp4", [red] * 3))
        assert np.allclose(frames.mean((0, 1, 2)), [220, 30, 60], atol=6)

    def test_reordered_frames(self, tmp_path):
        frames = [picture(index) for index in range(30)]
        for codec, name in (("mpeg4", "b.avi"), ("libx264", "b.mp4")):
            if is_available(codec):
                path = write(tmp_path / name, frames, codec=codec, options={"bf": "3"})
                assert indices_of(read_frames(path, "video", lambda n: [1, 2, 14, n - 1])) == [1, 2, 14, 29]

    def test_choice_is_told_the_number_of_frames(self, video):
        told = []
        read_frames(video, "video", lambda n: told.append(n) or [0])
        assert told == [30]

    def test_stops_after_the_last_wanted_frame(self, video, monkeypatch):
        decoded = []
        to_rgb = video_module._to_rgb
        monkeypatch.setattr(
            video_module, "_to_rgb", lambda frame, *rest: decoded.append(frame.pts) or to_rgb(frame, *rest)
        )
        read_frames(video, "video", lambda n: [2, 9])
        assert len(decoded) == 2

    def test_packets_without_a_frame(self, video, monkeypatch):
        """Where packets promise more frames than there are, the choice is made anew."""
        monkeypatch.setattr(video_module, "_scan", lambda *given, scan=video_module._scan: (scan(*given)[0], 33))
        told = []
        frames = read_frames(video, "video", lambda n: told.append(n) or [0, n // 2, n - 1])
        assert told == [33, 30]
        assert indices_of(frames) == [0, 15, 29]

    def test_long_videos_are_read_twice(self, video, monkeypatch):
        monkeypatch.setattr(video_module, "_KEPT_BYTES", 500)
        assert indices_of(read_all(video)) == list(range(30))

    @pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (-90, -1), (180, 2)])
    def test_rotation(self, tmp_path, degrees, turns):
        frame = picture(0)
        frame[:8, :8] = 255
        upright = read_all(write(tmp_path / "upright.mp4", [frame] * 3))
        turned = read_all(write(tmp_path / "turned.mp4", [frame] * 3, rotation=degrees))
        # The angle is counterclockwise, as in FFmpeg's display matrix.
        assert (turned == np.rot90(upright, turns, axes=(1, 2))).all()

    def test_no_declared_length(self, tmp_path):
        if not is_available("libvpx-vp9"):
            pytest.skip("no VP9 encoder")
        path = write(tmp_path / "live.webm", codec="libvpx-vp9", container_options={"live": "1"})
        assert len(read_all(path)) == 30

    def test_one_frame(self, tmp_path):
        path = write(tmp_path / "one.mp4", [picture(3)])
        assert indices_of(read_frames(path, "video", lambda n: [0] * 8)) == [3] * 8

    def test_many_threads(self, video):
        found, expected = [], read_all(video)

        def work():
            for _ in range(5):
                found.append((read_all(video) == expected).all())

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [True] * 30

    @pytest.mark.parametrize("wrong", [[3, 1], [30], [-1, 2], [], [0.5]])
    def test_wrong_choice(self, video, wrong):
        with pytest.raises(ValueError, match="choose must give"):
            read_frames(video, "video", lambda n: wrong)


class TestBrokenVideos:
    def test_missing(self, tmp_path):
        assert reason_of(tmp_path / "no.mp4") == "no such file"

    def test_empty(self, tmp_path):
        (tmp_path / "empty.mp4").touch()
        assert "zero bytes" in reason_of(tmp_path / "empty.mp4")

    def test_not_a_video(self, tmp_path):
        (tmp_path / "text.mp4").write_text("no video\n" * 500)
        assert "not a video" in reason_of(tmp_path / "text.mp4")
        assert "folder" in reason_of(tmp_path)

    def test_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.mp4")
        assert "not a regular file" in reason_of(tmp_path / "pipe.mp4")

    def test_playlist_does_not_fetch(self, tmp_path, video):
        (tmp_path / "list.mp4").write_text(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/{video}\n"
        )
        assert reason_of(tmp_path / "list.mp4")

    def test_sound_only(self, tmp_path):
        path = tmp_path / "sound.wav"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            sound.sample_rate = 8000
            container.mux(stream.encode(sound))
            container.mux(stream.encode())
        assert reason_of(path) == "no video stream"

    @pytest.mark.parametrize("codec", ["libvpx-vp9", "mpeg4"])
    def test_header_without_frames(self, tmp_path, codec):
        if not is_available(codec):
            pytest.skip(f"no encoder {codec}")
        content = Path(write(tmp_path / f"a.{CODECS[codec]}", codec=codec)).read_bytes()
        # Up to the first frame's data.
        end = content.index(b"\x1f\x43\xb6\x75") if codec == "libvpx-vp9" else content.index(b"movi") + 4
        path = tmp_path / f"b.{CODECS[codec]}"
        path.write_bytes(content[:end])
        assert reason_of(path) in ("a header, but no frames", "not a video, or its header is damaged")

    @pytest.mark.parametrize(
        ("codec", "suffix", "options"),
        [
            ("mpeg4", "avi", {}),
            ("libvpx-vp9", "webm", {}),
            ("mpeg4", "mp4", {"movflags": "faststart"}),
            ("mpeg4", "mp4", {}),
            ("mjpeg", "mkv", {}),
        ],
    )
    @pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
    def test_truncated(self, tmp_path, codec, suffix, options, share):
        if not is_available(codec):
            pytest.skip(f"no encoder {codec}")
        rng = np.random.default_rng(0)
        frames = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(30)]
        path = write(tmp_path / f"a.{suffix}", frames, codec=codec, container_options=options)
        assert len(read_all(path)) == 30
        content = Path(path).read_bytes()
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(content[: int(len(content) * share)])
        reason = reason_of(cut, choose=lambda n: [0])
        assert "truncated" in reason or (suffix == "mp4" and not options and "header is damaged" in reason)

    def test_damage_in_the_middle(self, tmp_path):
        if not is_available("libx264"):
            pytest.skip("no H.264 encoder")
        rng = np.random.default_rng(0)
        frames = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(30)]
        path = write(tmp_path / "a.mp4", frames, codec="libx264")
        content = bytearray(Path(path).read_bytes())
        middle = len(content) // 2
        content[middle : middle + len(content) // 6] = bytes(len(content) // 6)
        (tmp_path / "b.mp4").write_bytes(content)
        assert "damaged: frame" in reason_of(tmp_path / "b.mp4")

    def test_absurd_size(self, video, monkeypatch):
        monkeypatch.setattr(frames_module, "MAX_PIXELS", 32 * 48 - 1)
        assert "48x32 pixels" in reason_of(video)

    def test_mutated_files(self, tmp_path):
        """Whatever the bytes: frames of the right shape, or a ClipError."""
        sources = [write(tmp_path / "a.avi"), write(tmp_path / "a.mp4", container_options={"movflags": "faststart"})]
        if is_available("libvpx-vp9"):
            sources.append(write(tmp_path / "a.webm", codec="libvpx-vp9"))
        rng, outcomes = np.random.default_rng(1), {"read": 0, "refused": 0}
        for number in range(60):
            source = sources[number % len(sources)]
            content = bytearray(Path(source).read_bytes())
            for place in rng.integers(0, len(content), rng.integers(1, 30)):
                content[place] = rng.integers(256)
            if rng.random() < 0.3:
                content = content[: rng.integers(len(content))]
            path = tmp_path / f"mutated{os.path.splitext(source)[1]}"
            path.write_bytes(content)
            try:
                frames = read_frames(str(path), "video", lambda n: np.linspace(0, n - 1, 4).astype(int))
            except ClipError:
                outcomes["refused"] += 1
            else:
                assert frames.shape[0] == 4 and frames.shape[3] == 3
                outcomes["read"] += 1
        assert min(outcomes.values()) > 5


class TestFolders:
    def test_natural_order(self, tmp_path):
        path = write_frames(tmp_path / "frames")
        (tmp_path / "frames" / "._img_1.jpg").write_bytes(b"leftover")
        (tmp_path / "frames" / "notes.txt").write_text("no frame")
        assert indices_of(read_all(path, "frames")) == list(range(12))
        assert indices_of(read_frames(path, "frames", lambda n: [0, 5, 5, n - 1])) == [0, 5, 5, 11]

    def test_png(self, tmp_path):
        (tmp_path / "f").mkdir()
        for index in range(3):
            (tmp_path / "f" / f"{index}.PNG").write_bytes(tf.io.encode_png(picture(index)).numpy())
        assert (read_all(str(tmp_path / "f"), "frames") == np.stack([picture(index) for index in range(3)])).all()

    def test_missing_empty_and_a_file(self, tmp_path):
        assert reason_of(tmp_path / "no", "frames") == "no such folder"
        (tmp_path / "empty").mkdir()
        assert "without frames" in reason_of(tmp_path / "empty", "frames")
        (tmp_path / "file").touch()
        assert "not a folder" in reason_of(tmp_path / "file", "frames")

    @pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(40), b"\xff\xd8\xff"])
    def test_not_a_picture(self, tmp_path, content):
        path = write_frames(tmp_path / "frames", 3)
        (tmp_path / "frames" / "img_2.jpg").write_bytes(content)
        assert "img_2.jpg" in reason_of(path, "frames")
        # A frame that is not asked for is not opened.
        assert indices_of(read_frames(path, "frames", lambda n: [0, 2])) == [0, 2]

    def test_truncated_picture(self, tmp_path):
        path = write_frames(tmp_path / "frames", 3)
        file = tmp_path / "frames" / "img_3.jpg"
        file.write_bytes(file.read_bytes()[:-60])
        assert reason_of(path, "frames") == "frame img_3.jpg is damaged or cut short"

    def test_different_sizes(self, tmp_path):
        path = write_frames(tmp_path / "frames", 3)
        (tmp_path / "frames" / "img_9.jpg").write_bytes(tf.io.encode_jpeg(picture(0, 40, 48)).numpy())
        assert "different sizes: 48x32 and 48x40" in reason_of(path, "frames")

    def test_absurd_size(self, tmp_path, monkeypatch):
        path = write_frames(tmp_path / "frames", 1)
        monkeypatch.setattr(frames_module, "MAX_PIXELS", 32 * 48 - 1)
        assert "48x32 pixels" in reason_of(path, "frames")
