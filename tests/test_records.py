import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import square_clip, write_video
from packed_sets import LABELS, assert_same, batches, config, folder_set, packed, video_set

from keras_stss.config import DataConfig
from keras_stss.data import records
from keras_stss.data.annotations import Clip, DataError, DataSet, check_there, groups, read_annotations, storage
from keras_stss.data.annotations import packed as packed_format
from keras_stss.data.decode import ClipError, read_clip
from keras_stss.data.pack import pack
from keras_stss.data.pipeline import TooManyUnreadable, Unreadable, evaluation_stream
from keras_stss.data.records import check_packed


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the set, its packed folder by form): do not write into them."""
    folder = tmp_path_factory.mktemp("packed")
    videos = video_set(folder / "files")
    for form in ("video", "jpeg"):
        pack(videos, folder / form, form, shards=3)
    return videos, folder


@pytest.fixture(params=["video", "jpeg"])
def copy(request, made, tmp_path):
    """A packed folder to damage."""
    records._pieces.cache_clear()
    return shutil.copytree(made[1] / request.param, tmp_path / "copy")


def shard_of(clip):
    return clip.path.rpartition("#")[0]


def change(path, offset, length=1):
    """Turns some bytes of a file round."""
    content = bytearray(Path(path).read_bytes())
    for place in range(offset, offset + length):
        content[place] ^= 255
    Path(path).write_bytes(content)


def test_a_bit_in_a_record_is_found_named_and_costs_one_clip(copy):
    clips = packed(copy)
    bad = clips.train[3]
    record = records.Record(bad.path)
    for row in record.pieces:
        change(record.shard, int(row["offset"]) + 5)
    with pytest.raises(ClipError, match=r"record \d+ of train-0000\d-of-00002.tfrecord: damaged, piece 0"):
        read_clip(bad, np.arange)
    others = [clip for clip in clips.train if clip is not bad]
    assert all(len(read_clip(clip, np.arange)) for clip in others)
    assert batches(clips)[1] == {3}
    report = check_packed(str(copy))
    assert report["damaged"].keys() == {record.shard, f"{record.shard}#{record.number}"}


def test_a_shard_that_is_cut_short(copy):
    clips = packed(copy)
    shard = shard_of(clips.train[0])
    whole = [clip for clip in clips.train if shard_of(clip) != shard]
    os.truncate(shard, 200)
    unreadable = [clip for clip in clips.train if clip not in whole]
    for clip in unreadable:
        with pytest.raises(ClipError, match=r"record \d+ of train-\S+: the shard is cut short"):
            read_clip(clip, np.arange)
    assert all(len(read_clip(clip, np.arange)) for clip in whole)
    assert shard in check_packed(str(copy))["damaged"]


def test_only_the_frames_that_are_wanted_are_read(made, monkeypatch):
    asked = []
    read = storage.read_ranges
    monkeypatch.setattr(storage, "read_ranges", lambda path, ranges: asked.append(ranges) or read(path, ranges))
    clip = packed(made[1] / "jpeg").train[3]
    asked.clear()
    read_clip(clip, lambda n: [0, 2, 2, n - 1])
    pieces = records.Record(clip.path).pieces
    assert asked == [[(int(pieces[n]["offset"]), int(pieces[n]["size"])) for n in (0, 2, len(pieces) - 1)]]


@pytest.mark.parametrize("suffix", [".tfrecord", ".index", ".json"])
def test_a_missing_file_of_a_shard(copy, suffix):
    name = "train-00000-of-00002"
    clips = packed(copy)
    os.remove(copy / (name + suffix))
    report = check_packed(str(copy))
    assert list(report["damaged"]) == [str(copy / (name + suffix))]
    records._pieces.cache_clear()
    if suffix == ".json":
        with pytest.raises(DataError, match="is missing: a shard that the manifest names"):
            packed(copy)
    else:
        clip = next(clip for clip in clips.train if name in clip.path)
        with pytest.raises(ClipError, match="missing"):
            read_clip(clip, np.arange)


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 100, bytes(24), None])
def test_a_damaged_table_of_pieces(copy, content):
    clip = packed(copy).train[0]
    path = Path(shard_of(clip)).with_suffix(".index")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ClipError, match="the index of its shard, is damaged"):
        read_clip(clip, np.arange)
    assert str(path) in check_packed(str(copy))["damaged"]


def test_a_shard_whose_table_is_gone_as_well_does_not_hide_the_others(copy):
    """As a copy that was interrupted leaves it."""
    cut, other = (copy / f"train-0000{number}-of-00002.tfrecord" for number in (0, 1))
    os.remove(cut.with_suffix(".index"))
    for path in (cut, other):
        change(path, 20, 300)
    damaged = check_packed(str(copy))["damaged"]
    assert {str(cut), str(cut.with_suffix(".index")), str(other)} <= damaged.keys()
    assert any(place.startswith(f"{other}#") for place in damaged)


def test_a_set_that_is_packed_anew_in_the_same_place(tmp_path):
    """In one process, which keeps the tables of the shards that it has read."""
    videos = video_set(tmp_path / "files")
    for given in (videos, DataSet(videos.train[::-1], videos.validation, videos.labels)):
        pack(given, tmp_path / "packed", "video", shards=3)
        for clip, source in zip(packed(tmp_path / "packed").train, given.train, strict=True):
            np.testing.assert_array_equal(read_clip(clip, np.arange), read_clip(source, np.arange))
        shutil.rmtree(tmp_path / "packed")


@pytest.mark.parametrize("name", ["x.mp4 copy", "x.mp4~", "v1.5 final (2)", "名前 #1.日本", "a.tfrecord#3.mp4", ".x."])
def test_videos_with_any_suffix(tmp_path, name):
    folder = tmp_path / "set #1.tfrecord#2"
    folder.mkdir()
    shutil.copy(write_video(tmp_path / "0.mp4", square_clip(0, 0)), folder / name)
    clips = [Clip("0", str(folder / name), 0, "video")]
    pack(DataSet(clips, clips, LABELS), folder / "packed", "video")
    found = read_clip(packed(folder / "packed").train[0], np.arange)
    np.testing.assert_array_equal(found, read_clip(clips[0], np.arange))


def test_a_table_whose_rows_lie_is_caught_by_the_checksums(copy):
    """Offsets and sizes far beyond the file, without memory for what they promise."""
    clip = packed(copy).train[0]
    path = shard_of(clip).removesuffix(".tfrecord") + ".index"
    table = np.frombuffer(Path(path).read_bytes()[:-4], packed_format.PIECE).copy()
    for size, message in ((1000, "cut short"), (2**31, "more than 256 MiB")):
        table["size"], table["offset"] = size, 2**62
        Path(path).write_bytes(table.tobytes() + zlib.crc32(table.tobytes()).to_bytes(4, "little"))
        records._pieces.cache_clear()
        with pytest.raises(ClipError, match=message):
            read_clip(clip, np.arange)


def test_a_set_of_nothing_but_damage_stops_the_run(copy):
    clips = packed(copy)
    for path in copy.glob("*.tfrecord"):
        os.truncate(path, 0)
    registry = Unreadable(clips.validation, 0.2)
    with pytest.raises(TooManyUnreadable, match="the shard is cut short"), registry.explained():
        list(evaluation_stream(clips.validation, config(copy), 2, registry))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "format version 2; this code reads 1"),
        ({"labels": None}, "is damaged"),
        ({"clips": {"train": 7}}, "is damaged"),
        ({"clips": {"train": 8, "validation": 3}}, "promises 8 clips for train"),
        ({"shards": [{"name": "../../elsewhere", "split": "train", "sha256": {}}]}, "is damaged"),
        ({"form": "gif"}, "is damaged"),
        ({"labels": ["blue square"]}, "label 1 of 1|label 2 of 1"),
    ],
)
def test_a_manifest_that_is_wrong(copy, changes, message):
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match=message):
        packed(copy)


def test_a_manifest_or_list_of_clips_that_is_damaged(copy):
    change(copy / "train-00001-of-00002.json", 30)
    with pytest.raises(DataError, match=r"train-00001-of-00002\.json is damaged: its checksum"):
        packed(copy)
    (copy / "manifest.json").write_bytes(b"{")
    with pytest.raises(DataError, match=r"manifest\.json is damaged: no JSON"):
        packed(copy)


def test_a_folder_without_a_manifest_says_what_is_wanted(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"(?s)data set not found.*keras-stss prepare pack"):
            check_there(config(root))


def test_keys_of_other_formats_are_refused():
    for name, value in {"train": "a", "annotations": "a", "fold": 1, "labels": "a"}.items():
        with pytest.raises(ValueError, match=f"data.{name} does not belong to format 'records'"):
            DataConfig(format="records", root=".", **{name: value})


@pytest.mark.parametrize("form", ["video", "jpeg"])
def test_a_remote_folder_gives_the_same_stream(made, form):
    """TensorFlow's file system in memory stands for the remote ones: it is reached in the same way."""
    root = f"ram://packed-{form}/set"
    tf.io.gfile.makedirs(root)
    for path in (made[1] / form).iterdir():
        if not path.name.startswith("."):
            with tf.io.gfile.GFile(f"{root}/{path.name}", "wb") as file:
                file.write(path.read_bytes())
    assert config(root).root == root
    check_there(config(root))
    assert_same(batches(packed(root), 3)[0], batches(packed(made[1] / form), 3)[0])
    assert check_packed(root)["damaged"] == {}
    clip = packed(root).train[0]
    tf.io.gfile.remove(shard_of(clip))
    with pytest.raises(ClipError, match="the shard is missing"):
        read_clip(clip, np.arange)
    with tf.io.gfile.GFile(shard_of(clip), "wb") as file:
        file.write(b"short")
    with pytest.raises(ClipError, match="the shard is cut short"):
        read_clip(clip, np.arange)


def test_a_file_system_that_is_not_there_is_named():
    with pytest.raises(DataError, match="no file system for nowhere://"):
        read_annotations(config("nowhere://bucket/set"))


@pytest.mark.parametrize("path", ["a.mp4", "a.tfrecord", "a.tfrecord#", "a.tfrecord#-1", "a.tfrecord#x"])
def test_a_path_that_names_no_record(path):
    with pytest.raises(ClipError, match="names no record"):
        read_clip(Clip("a", path, 0, "packed_frames"), np.arange)


def test_a_group_stays_with_its_clip(tmp_path):
    path = str(write_video(tmp_path / "0.mp4", square_clip(0, 0)))
    clips = [Clip("0", path, 0, "video", group="kitchen")]
    pack(DataSet(clips, clips, LABELS), tmp_path / "packed", "video")
    assert packed(tmp_path / "packed").train[0].group == "kitchen"


def test_a_group_of_a_packed_set_is_held_out(tmp_path):
    """Whichever of the packed lists its clips are in; no clip is lost or there twice."""
    path = str(write_video(tmp_path / "0.mp4", square_clip(0, 0)))
    clips = [
        Clip(str(n), path, n % 3, "video", group=("kitchen", "10", "9")[n % 3], frames=(n, n + 2)) for n in range(7)
    ]
    pack(DataSet(clips[:4], clips[4:], LABELS), tmp_path / "packed", "video")
    assert groups(config(tmp_path / "packed")) == ["9", "10", "kitchen"]
    for group, wanted in {"kitchen": ["0", "3", "6"], "10": ["1", "4"]}.items():
        data_set = read_annotations(config(tmp_path / "packed", holdout=group))
        assert [clip.id for clip in data_set.validation] == wanted
        assert sorted([clip.id for clip in data_set.train] + wanted) == [str(n) for n in range(7)]
        assert data_set == read_annotations(config(tmp_path / "packed", holdout="9"), holdout=group)
    for wrong in ("each", "garden"):
        with pytest.raises(DataError, match=f"no group '{wrong}'.*There are: 9, 10, kitchen"):
            read_annotations(config(tmp_path / "packed", holdout=wrong))


def test_no_group_can_be_held_out_where_there_are_none(made):
    with pytest.raises(DataError, match="packed from a data set without groups"):
        read_annotations(config(made[1] / "video", holdout="1"))


def test_the_window_is_cut_as_from_files(tmp_path):
    folders = folder_set(tmp_path / "files")
    pack(folders, tmp_path / "packed")
    for clip, source in zip(packed(tmp_path / "packed").train, folders.train, strict=True):
        cut = [read_clip(one, lambda n: [0, n - 1], lambda h, w: (3, 5, h - 7, w - 9)) for one in (clip, source)]
        np.testing.assert_array_equal(*cut)
        assert cut[0].shape[1:3] == (25, 31)


def test_the_version_of_the_format_is_written(made):
    assert json.loads((made[1] / "video" / "manifest.json").read_text())["version"] == packed_format.VERSION
