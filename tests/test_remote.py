"""Data sets behind one of TensorFlow's file systems: that in memory stands for all, and is reached in the same way."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from conftest import square_clip, write_video
from packed_sets import write_folder

from keras_stss.cli import main
from keras_stss.config import DataConfig
from keras_stss.data import video
from keras_stss.data.annotations import Clip, DataError, read_annotations, storage
from keras_stss.data.decode import ClipError, read_clip
from keras_stss.data.prepare import check_data_set


def something_v1(root):
    for number in (1, 2):
        write_folder(root / "20bn-something-something-v1" / str(number), square_clip(number, number))
    (root / "labels.csv").write_text("Holding\nPushing\n")
    (root / "train.csv").write_text("1;Holding\n3;Pushing\n")  # there is no clip 3
    (root / "validation.csv").write_text("2;Pushing\n")
    return {"format": "something_v1"}


def something_v2(root):
    (root / "videos").mkdir()
    write_video(root / "videos" / "1.mp4", square_clip(0, 1))
    write_video(root / "videos" / "2.mp4", square_clip(1, 2))
    (root / "labels.json").write_text(json.dumps({"Holding": "0", "Pushing": "1"}))
    for name, ids in {"train": ["1", "3"], "validation": ["2"]}.items():
        (root / f"{name}.json").write_text(json.dumps([{"id": one, "template": "Holding"} for one in ids]))
    return {"format": "something_v2"}


def kinetics(root):
    (root / "clips" / "train" / "a class").mkdir(parents=True)
    for number in (1, 2):
        write_video(root / "clips" / "train" / "a class" / f"{number}_000000_000001.mp4", square_clip(number, number))
    for name, ids in {"train": (1, 3), "val": (2,)}.items():
        lines = ["label,youtube_id,time_start,time_end,split", *(f"x,{one},0,1," for one in ids)]
        (root / f"{name}.csv").write_text("\n".join(lines))
    return {"format": "kinetics", "videos": "clips"}


def hmdb51(root):
    (root / "splits").mkdir()
    for label in ("clap", "wave"):
        (root / "videos" / label).mkdir(parents=True)
        for number in (1, 2):
            write_video(root / "videos" / label / f"{number}.mp4", square_clip(number, number))
        (root / "splits" / f"{label}_test_split1.txt").write_text("1.avi 1\n2.avi 2\n3.avi 1\n")
    return {"format": "hmdb51"}


def frame_list(root):
    for number in (1, 2):
        write_folder(root / "frames" / str(number), square_clip(number, number, frames=7))
    (root / "train.txt").write_text("./1 5 0\n3 5 1\n")
    (root / "val.txt").write_text("2 5 1\n")
    return {"format": "frame_list", "videos": "frames"}


def own_clips(root):
    write_folder(root / "a" / "frames", square_clip(1, 1))
    write_folder(root / "a" / "more.frames", square_clip(2, 2))
    write_video(root / "b.mp4", square_clip(1, 2, frames=24))
    rows = ["a/frames,x,train,", "./a/more.frames,y,val,", "b.mp4,x,train,", "b.mp4,y,train,0.2", "c.mp4,y,val,"]
    (root / "clips.csv").write_text("\n".join(["path,label,split,start", *rows]))
    return {"format": "clips", "annotations": "clips.csv"}


def upload(root, remote):
    for folder, _, names in os.walk(root):
        there = os.path.normpath(os.path.join(remote.partition("://")[2], os.path.relpath(folder, root)))
        tf.io.gfile.makedirs(f"ram://{there}")
        for name in names:
            with (
                tf.io.gfile.GFile(f"ram://{there}/{name}", "wb") as file,
                open(os.path.join(folder, name), "rb") as source,
            ):
                file.write(source.read())
    return remote


def pixels(clip, window=None):
    """Frames of a clip, or the reason why there are none."""
    try:
        return read_clip(clip, lambda n: [0, n // 2, n - 1], window)
    except ClipError as error:
        return str(error)


@pytest.mark.parametrize("write", [something_v1, something_v2, kinetics, hmdb51, frame_list, own_clips])
def test_the_same_annotations_and_pixels_as_from_disk(write, tmp_path):
    values = write(tmp_path)
    remote = upload(tmp_path, f"ram://{write.__name__}/set")
    sets = [read_annotations(DataConfig(root=str(root), **values)) for root in (tmp_path, remote)]
    assert sets[0].labels == sets[1].labels
    told = []
    for split in ("train", "validation"):
        for local, there in zip(*(getattr(one, split) for one in sets), strict=True):
            moved = str(there.path).replace(remote, str(tmp_path))
            assert there.path.startswith(remote)
            assert Clip(there.id, moved, *(getattr(there, name) for name in Clip.__slots__[2:])) == local
            found = [pixels(one, lambda h, w: (3, 5, h - 7, w - 9)) for one in (local, there)]
            np.testing.assert_array_equal(*found)
            told += [found[1]] if isinstance(found[1], str) else []
    assert told and set(told) <= {"no such file", "no such folder"}


def test_only_wanted_pictures_are_fetched_and_a_video_once(tmp_path, monkeypatch):
    own_clips(tmp_path)
    remote, read = upload(tmp_path, "ram://fetched/set"), []
    fetch = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda path, *most: read.append(path) or fetch(path, *most))
    read_clip(Clip("a", f"{remote}/a/frames", 0, "frames"), lambda n: [1, 1, 3])
    read_clip(Clip("b", f"{remote}/b.mp4", 0, "video"), lambda n: [0, n - 1])
    assert read == [f"{remote}/a/frames/00002.jpg", f"{remote}/a/frames/00004.jpg", f"{remote}/b.mp4"]


def test_what_is_wrong_with_a_remote_clip_is_its_reason(tmp_path, monkeypatch):
    own_clips(tmp_path)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "no.mp4").write_bytes(b"no video")
    remote = upload(tmp_path, "ram://wrong/set")
    clip_of = lambda name, kind="video": Clip(name, f"{remote}/{name}", 0, kind)  # noqa: E731
    assert pixels(clip_of("empty.mp4")) == "empty file (zero bytes)"
    assert pixels(clip_of("no.mp4")) == "not a video, or its header is damaged"
    assert "is a directory" in pixels(clip_of("a"))
    assert pixels(clip_of("a", "frames")) == "a folder without frames (*.jpg, *.jpeg, *.png)"
    monkeypatch.setattr(video, "MAX_REMOTE_BYTES", os.path.getsize(tmp_path / "b.mp4"))
    assert len(pixels(clip_of("b.mp4"))) == 3
    monkeypatch.setattr(video, "MAX_REMOTE_BYTES", os.path.getsize(tmp_path / "b.mp4") - 1)
    assert pixels(clip_of("b.mp4")).startswith("more than 0 MiB: remote videos are read as a whole")


def test_lists_on_disk_and_clips_elsewhere(tmp_path):
    """A folder of clips, a list or a single row may be remote where the rest is on disk, and the other way round."""
    values = own_clips(tmp_path)
    remote = upload(tmp_path, "ram://mixed/set")
    rows = [f"{remote}/b.mp4,x,train,", f"{tmp_path}/b.mp4,x,train,", "b.mp4,y,val,"]
    (tmp_path / "mixed.csv").write_text("\n".join(["path,label,split,start", *rows]))
    values = values | {"annotations": str(tmp_path / "mixed.csv")}
    for root, videos in ((tmp_path, remote), (remote, None), (remote, str(tmp_path))):
        data_set = read_annotations(DataConfig(root=str(root), videos=videos, **values))
        base = videos or remote
        assert [clip.path for clip in data_set.train] == [f"{remote}/b.mp4", f"{tmp_path}/b.mp4"]
        assert [clip.path for clip in data_set.validation] == [f"{base}/b.mp4"]


def test_a_row_that_leaves_a_remote_root_is_refused(tmp_path):
    values = own_clips(tmp_path)
    (tmp_path / "clips.csv").write_text("path,label\n../other/b.mp4,x\n")
    remote = upload(tmp_path, "ram://leaves/set")
    with pytest.raises(DataError, match=f"^{remote}/clips.csv:2: the path '../other/b.mp4' leaves the folder"):
        read_annotations(DataConfig(root=remote, **values))


@pytest.mark.parametrize("part", ["root", "row"])
def test_a_file_system_that_is_not_there_is_named(part, tmp_path):
    values, root = own_clips(tmp_path), tmp_path
    if part == "root":
        root = "s3://bucket/set"
    else:
        (tmp_path / "clips.csv").write_text("path,label\na/frames,x\ns3://bucket/set/b.mp4,x\n")
    with pytest.raises(DataError, match=r"^s3://bucket/set\S* cannot be read: .* no file system for s3://.*mount it$"):
        read_annotations(DataConfig(root=str(root), **values))


def test_a_remote_root_without_the_data_set_says_what_is_wanted():
    for root in ("ram://nowhere", "ram://nowhere/set/"):
        with pytest.raises(DataError, match=rf"(?s)data set not found.*{root}.*Wanted below data.root"):
            read_annotations(DataConfig(format="ucf101", root=root))


def test_preparing_and_packing_a_remote_data_set(tmp_path, capsys):
    (tmp_path / "disk").mkdir()
    values = own_clips(tmp_path / "disk")
    write_folder(tmp_path / "disk" / "twice", square_clip(1, 1))  # the frames of a/frames
    with open(tmp_path / "disk" / "clips.csv", "a") as file:
        file.write("\ntwice,x,train,")
    remote = upload(tmp_path / "disk", "ram://prepared/set")
    reports = {}
    for root in (str(tmp_path / "disk"), remote):
        for depth in ("files", "packets"):
            report, strips = check_data_set(
                DataConfig(root=root, max_unreadable=0.6, **values), depth, workers=2, samples=2
            )
            reports[root, depth] = json.dumps(report).replace(root, "ROOT"), [pictures for *_, pictures in strips]
    for depth in ("files", "packets"):
        assert reports[remote, depth] == reports[str(tmp_path / "disk"), depth]
    assert json.loads(reports[remote, "packets"][0])["duplicates"]["same_content"] == [["ROOT/a/frames", "ROOT/twice"]]
    packed = {}
    for number, root in enumerate((str(tmp_path / "disk"), remote)):
        folder = tmp_path / f"packed {number}"
        assert not main(["prepare", "pack", "clips", root, str(folder), "--shards=2", "data.workers=2"])
        capsys.readouterr()
        packed[root] = [path.read_bytes() for path in sorted(folder.glob("*.tfrecord"))]
        assert root in (folder / "manifest.json").read_text()
    assert len(packed[remote]) == 2 and packed[remote] == packed[str(tmp_path / "disk")]
