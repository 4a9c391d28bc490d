import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import av
import numpy as np
import pytest
import tensorflow as tf
from conftest import square_clip, write_video
from packed_sets import LABELS, assert_same, batches, folder_set, packed, video_set, write_folder

from keras_stss.cli import main
from keras_stss.data import pack as pack_module
from keras_stss.data import records
from keras_stss.data.annotations import Clip, DataError, DataSet
from keras_stss.data.decode import ClipError, read_clip
from keras_stss.data.pack import pack
from keras_stss.data.record_writer import example


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return video_set(tmp_path_factory.mktemp("videos"))


def contents(folder):
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder)) if not name.startswith(".")}


def messages(folder):
    """Every message of every shard, by TensorFlow's own readers, which check the CRC-32C of each."""
    paths = sorted(str(path) for path in folder.glob("*.tfrecord"))
    return [tf.train.Example.FromString(record.numpy()).features.feature for record in tf.data.TFRecordDataset(paths)]


@pytest.mark.parametrize("sizes", [[], [0], [1, 127, 128], [20000, 3]])
def test_a_message_is_what_tensorflow_makes_of_it_and_its_pieces_lie_where_it_says(sizes):
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    message, offsets = example({"label": 300, "id": "ä"}, "video", pieces)
    feature = tf.train.Example.FromString(message).features.feature
    assert feature["label"].int64_list.value[:] == [300]
    assert feature["id"].bytes_list.value[:] == ["ä".encode()]
    assert feature["video"].bytes_list.value[:] == pieces
    assert [message[offset : offset + len(piece)] for offset, piece in zip(offsets, pieces, strict=True)] == pieces


def test_packed_videos_give_the_very_stream_of_their_files(videos, tmp_path):
    pack(videos, tmp_path, "video", shards=3)
    assert_same(batches(packed(tmp_path))[0], batches(videos)[0])
    read = packed(tmp_path)
    assert [(clip.id, clip.label) for clip in read.train] == [(clip.id, clip.label) for clip in videos.train]
    assert [clip.id for clip in read.validation] == [clip.id for clip in videos.validation]
    assert read.labels == LABELS


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_packed_folders_keep_the_very_bytes_and_give_the_very_stream(tmp_path, suffix):
    folders = folder_set(tmp_path / "files", suffix=suffix)
    pack(folders, tmp_path / "packed", short_side=32)  # nothing is larger
    by_id = {one["id"].bytes_list.value[0]: one["frames"].bytes_list.value[:] for one in messages(tmp_path / "packed")}
    for clip in (*folders.train, *folders.validation):
        files = [(tmp_path / "files" / clip.id / name).read_bytes() for name in sorted(os.listdir(clip.path))]
        assert by_id[clip.id.encode()] == files
    assert_same(batches(packed(tmp_path / "packed"))[0], batches(folders)[0])


def test_videos_that_are_encoded_anew(videos, tmp_path):
    """The same clips, frames and parts, smaller and nearly the same pixels; every frame is a key frame."""
    part = replace(videos.train[6], frames=(2, 7))
    parts = DataSet([*videos.train[:6], part], videos.validation, LABELS)
    pack(parts, tmp_path, "video", short_side=24, shards=2)
    read = packed(tmp_path)
    for clip, source in zip(read.train + read.validation, parts.train + parts.validation, strict=True):
        counts = []
        frames = read_clip(clip, lambda n: counts.append(n) or np.arange(n))  # noqa: B023 - called at once
        original = read_clip(source, np.arange)
        assert len(frames) == len(original) and frames.shape[1:] == (24, 30, 3) and clip.id == source.id
        small = tf.image.resize(original, (24, 30), antialias=True).numpy()
        assert np.abs(frames - small).mean() < 8
        with av.open(records.VideoSource(records.Record(clip.path)).open()) as container:
            assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    whole = contents(tmp_path)
    pack(parts, tmp_path, "video", short_side=24, shards=2)
    assert contents(tmp_path) == whole
    with pytest.raises(DataError, match="packed otherwise"):
        pack(parts, tmp_path, "video", short_side=20, shards=2)


def test_frames_of_odd_size_are_encoded_as_they_are(tmp_path):
    gradient = np.add.outer(np.arange(33), np.arange(41))[None, :, :, None] * np.ones((4, 1, 1, 3))
    path = str(write_video(tmp_path / "0.mp4", gradient.astype(np.uint8)))
    clips = [Clip("0", path, 0, "video")]
    pack(DataSet(clips, clips, LABELS), tmp_path / "packed", "video", short_side=100)
    frames = read_clip(packed(tmp_path / "packed").train[0], np.arange)
    assert frames.shape == (4, 33, 41, 3) and np.abs(frames - read_clip(clips[0], np.arange).astype(float)).mean() < 6


def test_shrunk_frames_give_the_stream_of_a_folder_of_the_packed_pictures(videos, tmp_path):
    pack(videos, tmp_path / "packed", short_side=26, quality=80)
    clips = {}
    for one in messages(tmp_path / "packed"):
        name = one["id"].bytes_list.value[0].decode()
        pictures = [tf.io.decode_jpeg(content).numpy() for content in one["frames"].bytes_list.value]
        assert {picture.shape for picture in pictures} == {(26, 32, 3)}  # 40 * 26 / 32 = 32.5, to the even number
        folder = tmp_path / "unpacked" / name
        folder.mkdir(parents=True)
        for number, content in enumerate(one["frames"].bytes_list.value):
            (folder / f"{number:05d}.jpg").write_bytes(content)
        clips[name] = Clip(name, str(folder), one["label"].int64_list.value[0], "frames")
    unpacked = DataSet(*([clips[clip.id] for clip in part] for part in (videos.train, videos.validation)), LABELS)
    assert_same(batches(packed(tmp_path / "packed"))[0], batches(unpacked)[0])


def test_pictures_of_a_video_are_near_those_of_the_file(videos, tmp_path):
    pack(videos, tmp_path, quality=100)
    for clip, source in zip(packed(tmp_path).train, videos.train, strict=True):
        got, wanted = read_clip(clip, np.arange), read_clip(source, np.arange)
        assert got.shape == wanted.shape
        assert abs(got.astype(int) - wanted).mean() < 6  # noise loses some colour to 4:2:0


@pytest.mark.parametrize("form", ["video", "jpeg"])
def test_parts_of_a_video_become_clips_of_their_own(tmp_path, form):
    path = str(write_video(tmp_path / "long.mp4", square_clip(0, 0, frames=36)))  # 12 a second
    parts = [
        Clip("all", path, 0, "video"),
        Clip("times", path, 1, "video", start=0.5, end=1.5),
        Clip("numbers", path, 2, "video", frames=(3, 9)),
        Clip("to the end", path, 0, "video", start=2.0),
    ]
    data_set = DataSet(parts, parts[:1], LABELS)
    manifest = pack(data_set, tmp_path / "packed", form, shards=1, quality=100)
    records = {shard["split"]: shard["records"] for shard in manifest["shards"]}
    assert records == {"train": 1 if form == "video" else 4, "validation": 1}
    counts = []
    for clip, source in zip(packed(tmp_path / "packed").train, parts, strict=True):
        got, wanted = read_clip(clip, np.arange), read_clip(source, np.arange)
        counts.append(len(got))
        if form == "video":
            np.testing.assert_array_equal(got, wanted)
        else:
            assert abs(got.astype(int) - wanted).mean() < 6
    assert counts == [36, 12, 6, 12]


def test_a_part_of_a_folder(tmp_path):
    folder = write_folder(tmp_path / "0", square_clip(0, 0, frames=9))
    clips = [Clip("a", str(folder), 0, "frames", frames=(2, 5)), Clip("b", str(folder), 0, "frames", frames=(7, 99))]
    pack(DataSet(clips, clips, LABELS), tmp_path / "packed")
    for clip, source in zip(packed(tmp_path / "packed").train, clips, strict=True):
        np.testing.assert_array_equal(read_clip(clip, np.arange), read_clip(source, np.arange))


def test_the_shards_do_not_depend_on_the_number_of_workers(videos, tmp_path):
    for workers in (1, 3):
        pack(videos, tmp_path / str(workers), shards=4, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    names = {name.partition(".")[0] for name in contents(tmp_path / "1")} - {"manifest"}
    assert names == {*(f"train-0000{n}-of-00003" for n in range(3)), "validation-00000-of-00001"}


def test_what_cannot_be_read_keeps_its_place_with_its_reason(tmp_path):
    videos = video_set(tmp_path)
    (tmp_path / "2.mp4").write_bytes(b"")
    (tmp_path / "4.mp4").unlink()
    files, positions = batches(videos)
    assert positions == {2, 4}
    for form in ("video", "jpeg"):
        manifest = pack(videos, tmp_path / form, form, shards=2)
        reasons = {str(tmp_path / "2.mp4"): "empty file (zero bytes)", str(tmp_path / "4.mp4"): "no such file"}
        assert manifest["unreadable"] == reasons
        assert manifest["clips"] == {"train": 7, "validation": 3}
        again, unreadable = batches(packed(tmp_path / form))
        assert unreadable == {2, 4}
        if form == "video":
            assert_same(again, files)
        with pytest.raises(ClipError, match="unreadable when it was packed: no such file"):
            read_clip(packed(tmp_path / form).train[4], np.arange)


def test_a_killed_run_goes_on_where_it_stopped(videos, tmp_path):
    """Killed in the third shard, by a signal that nothing can catch."""
    pack(videos, tmp_path / "whole", shards=6)
    code = f"""
        import sys, time
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from packed_sets import LABELS
        from keras_stss.data.annotations import Clip, DataSet
        from keras_stss.data.pack import pack
        lists = [[Clip(*values) for values in part] for part in {
        [[(clip.id, clip.path, clip.label, clip.kind) for clip in part] for part in (videos.train, videos.validation)]
    }]
        def advance(done, total):
            if done == 5:
                print("here", flush=True)
                time.sleep(60)
        pack(DataSet(*lists, LABELS), {str(tmp_path / "killed")!r}, shards=6, advance=advance)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = contents(tmp_path / "killed")
    finished = {name for name in left if name.endswith(".json")}
    assert finished and any(name.endswith(".partial") for name in left) and "manifest.json" not in left
    with pytest.raises(DataError, match="packing that was interrupted has none yet"):
        packed(tmp_path / "killed")
    kept = {name: os.stat(tmp_path / "killed" / name).st_mtime_ns for name in finished}
    pack(videos, tmp_path / "killed", shards=6)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert kept == {name: os.stat(tmp_path / "killed" / name).st_mtime_ns for name in finished}


def test_a_finished_pack_is_left_as_it_is_and_a_lost_or_cut_shard_is_made_again(videos, tmp_path):
    pack(videos, tmp_path, shards=3)
    before, written = contents(tmp_path), os.stat(tmp_path / "train-00000-of-00002.tfrecord").st_mtime_ns
    time.sleep(0.01)
    (tmp_path / "train-00001-of-00002.tfrecord").write_bytes(before["train-00001-of-00002.tfrecord"][:-100])
    (tmp_path / "validation-00000-of-00001.json").unlink()
    told = []
    pack(videos, tmp_path, shards=3, advance=lambda done, total: told.append((done, total)))
    assert contents(tmp_path) == before
    assert os.stat(tmp_path / "train-00000-of-00002.tfrecord").st_mtime_ns == written
    assert told[-1] == (10, 10) and told == sorted(told)


def test_other_settings_or_clips_never_mix_in_one_folder(videos, tmp_path):
    pack(videos, tmp_path, shards=3)
    for changed in ({"quality": 50}, {"short_side": 16}, {"form": "video"}):
        with pytest.raises(DataError, match="packed otherwise"):
            pack(videos, tmp_path, **{"shards": 3} | changed)
    with pytest.raises(DataError, match="none of the shards wanted"):
        pack(videos, tmp_path, shards=5)
    with pytest.raises(DataError, match="packed otherwise"):
        pack(DataSet(videos.train[::-1], videos.validation, LABELS), tmp_path, shards=3)


def test_a_failure_ends_all_workers_and_leaves_nothing_half_done(videos, tmp_path, monkeypatch):
    def fail(writer, *_):
        raise OSError(28, "No space left on device", writer.path)

    monkeypatch.setattr(pack_module.RecordWriter, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        pack(videos, tmp_path, shards=4, workers=2)
    assert not contents(tmp_path)
    monkeypatch.undo()
    pack(videos, tmp_path, shards=4, workers=2)
    assert len(packed(tmp_path).train) == 7


def test_two_processes_do_not_pack_into_one_folder(videos, tmp_path):
    with pack_module._locked(tmp_path), pytest.raises(DataError, match="another process"):
        pack(videos, tmp_path)


def test_large_records_are_written_in_parts(videos, tmp_path, monkeypatch):
    """As several messages, each within the limit; what is read is the same."""
    monkeypatch.setattr("keras_stss.data.record_writer.PART_BYTES", 2500)
    monkeypatch.setattr(pack_module, "_BLOCK_BYTES", 1000)
    pack(videos, tmp_path, "video", shards=2)
    parts = [one["part"].int64_list.value[0] for one in messages(tmp_path)]
    assert max(parts) > 0
    assert_same(batches(packed(tmp_path), 3)[0], batches(videos, 3)[0])


def test_a_folder_whose_name_is_no_text(tmp_path):
    """As older systems leave them: Latin-1 where UTF-8 is meant."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system has no such names")
    write_video(f"{folder}/0.mp4", square_clip(0, 0))
    clips, lost = [Clip("0", f"{folder}/0.mp4", 0, "video")], [Clip("1", f"{folder}/1.mp4", 0, "video")]
    pack(DataSet(clips + lost, clips, LABELS), tmp_path / "packed", "video", source=folder)
    manifest = json.loads((tmp_path / "packed" / "manifest.json").read_bytes())
    assert manifest["source"] == folder and list(manifest["unreadable"]) == [lost[0].path]
    np.testing.assert_array_equal(
        read_clip(packed(tmp_path / "packed").train[0], np.arange), read_clip(clips[0], np.arange)
    )


def test_a_clip_of_too_many_frames_is_left_out(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_module, "MAX_JPEG_BYTES", 12000)
    manifest = pack(videos, tmp_path)
    assert 0 < len(manifest["unreadable"]) < 10
    assert all("give the part wanted" in reason for reason in manifest["unreadable"].values())


def test_the_manifest_tells_how_it_was_packed(videos, tmp_path):
    pack(videos, tmp_path, short_side=24, shards=2, source="something_v2 from here")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["settings"] == {"form": "jpeg", "short_side": 24, "quality": 95}
    assert manifest["source"] == "something_v2 from here"
    index = json.loads((tmp_path / "validation-00000-of-00001.json").read_text())
    assert {entry["source"] for entry in index["clips"]} == {clip.path for clip in videos.validation}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"form": "mp4"}, "form must be"),
        ({"form": "video", "short_side": 0}, "short_side must be at least 1"),
        ({"short_side": 0}, "short_side must be at least 1"),
        ({"quality": 101}, "quality from 1 to 100"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"output": "gs://bucket/folder"}, "written to a disk"),
    ],
)
def test_what_cannot_be_is_refused(videos, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        pack(**{"data_set": videos, "output": str(tmp_path), **given})


def test_folders_are_no_videos_and_packed_sets_are_not_packed_again(videos, tmp_path):
    with pytest.raises(DataError, match="form 'jpeg'"):
        pack(folder_set(tmp_path / "files"), tmp_path / "a", "video")
    pack(videos, tmp_path / "b", "video")
    with pytest.raises(DataError, match="packed already"):
        pack(packed(tmp_path / "b"), tmp_path / "c")


def test_the_command_line_packs_checks_and_finds_damage(clip_set, tmp_path, capsys):
    folder = tmp_path / "packed"
    command = ["prepare", "pack", "clips", str(clip_set), str(folder), "--form", "video", "data.workers=2"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "18 train, 7 validation clips in 2 shards" in told and f"root: {folder}" in told
    assert main(["prepare", "records", str(folder)]) == 0
    shard = next(folder.glob("train-*.tfrecord"))
    os.truncate(shard, 300)
    assert main(["prepare", "records", str(folder), "--json"]) == 2
    assert str(shard) in json.loads(capsys.readouterr().out.splitlines()[-1])["damaged"]
    assert main([*command, "--json"]) == 0  # makes it again
    assert main(["prepare", "records", str(folder)]) == 0


@pytest.mark.parametrize(
    "options", [["--quality", "0"], ["--form", "video", "--short-side", "0"], ["data.fold=1"], ["data.root=/nowhere"]]
)
def test_the_command_line_says_what_is_wrong(clip_set, tmp_path, capsys, options):
    assert main(["prepare", "pack", "clips", str(clip_set), str(tmp_path / "packed"), *options]) == 2
    assert capsys.readouterr().err.startswith("keras-stss: ")


@pytest.mark.parametrize("seed", range(30))
def test_damage_anywhere_gives_a_reason_or_the_right_frames(videos, tmp_path, seed):
    """Random bytes of random files are turned over, cut off or zeroed: never a crash, never wrong frames."""
    form = ("video", "jpeg")[seed % 2]
    pack(videos, tmp_path, form, shards=2)
    wanted = [read_clip(clip, np.arange) for clip in packed(tmp_path).train]
    rng = random.Random(seed)
    names = sorted(contents(tmp_path))
    records._pieces.cache_clear()
    for _ in range(rng.randint(1, 3)):
        path = tmp_path / rng.choice(names)
        content = bytearray(path.read_bytes())
        at = rng.randrange(len(content) or 1)
        kind = rng.choice(["cut", "bit", "zeros"])
        content[at:] = {
            "cut": b"",
            "bit": bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :] if content else b"",
            "zeros": bytes(min(64, len(content) - at)) + content[at + 64 :],
        }[kind]
        path.write_bytes(content)
    try:
        clips = packed(tmp_path).train
    except DataError:
        return
    for clip, frames in zip(clips, wanted, strict=True):
        with contextlib.suppress(ClipError):
            np.testing.assert_array_equal(read_clip(clip, np.arange), frames)
