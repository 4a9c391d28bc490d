"""Whatever the bytes of clips and annotations: a result, or an error that says what is wrong, and soon."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import square_clip, write_video
from test_decode_parts import EVEN, UNEVEN
from test_decode_parts import write as write_timed

from keras_stss.config import DataConfig
from keras_stss.data import frames as limits
from keras_stss.data.annotations import DataError, read_annotations
from keras_stss.data.decode import ClipError, read_frames

LONGEST = 20.0  # seconds for one file, on a machine that is busy with other things
# What goes wrong in files: broken numbers, quotes, marks, ends of lines, and steps out of the folder.
SCRAPS = [b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b",", b";", b"\t", b"[", b"]", b"{", b"}", b"..", b"/",
          b"../", b"-1", b"9" * 400, b"nan", b"1e999", b"null", b"true", b"\\ud800", "é".encode(), b" "]  # fmt: skip


def mutated(content, rng, scraps=None):
    """Some bytes changed, put in, taken out, doubled or cut off."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 12)):
        place = int(rng.integers(len(content) + 1))
        kind = rng.integers(5)
        if kind == 0 and scraps:
            content[place:place] = scraps[rng.integers(len(scraps))]
        elif kind == 1:
            content[place : place + 1] = bytes([rng.integers(256)])
        elif kind == 2:
            del content[place : place + int(rng.integers(1, 20))]
        elif kind == 3:
            content[place:place] = content[place : place + int(rng.integers(1, 60))]
        elif rng.random() < 0.2:
            del content[place:]
        if not content:
            break
    return bytes(content)


def entry(number, **values):
    return {"id": str(number), "template": "Holding [something]", **values}


def times(*actions):
    return {"timestamps": [[10.0, 30.0]], "segments": {name: {"timestamps": [[1.0, 2.5]]} for name in actions}}


# Files of a small data set of each format.
SETS = {
    "something_v2": {
        "train.json": json.dumps([entry(1), entry(2)], indent=1),
        "validation.json": json.dumps([entry(3)]),
        "labels.json": '{"Holding something": "0", "Pushing something": "1"}',
        "videos/1.webm": "",
    },
    "something_v1": {
        "train.csv": "1;Holding something\n2;Pushing something\n",
        "validation.csv": "3;Holding something\n",
        "labels.csv": "Holding something\nPushing something\n",
        "videos/1/00001.jpg": "",
    },
    "kinetics": {
        "train.csv": "label,youtube_id,time_start,time_end,split\na,x,0,10,train\nb,y,5,15,train\n",
        "val.csv": "label,youtube_id,time_start,time_end,split\na,z,0,10,val\n",
        "x_000000_000010.mp4": "",
    },
    "diving48": {
        "Diving48_V2_train.json": '[{"vid_name": "a_1", "label": 1, "start_frame": 0, "end_frame": 90}]',
        "Diving48_V2_test.json": '[{"vid_name": "b_1", "label": 0, "start_frame": 0, "end_frame": 90}]',
        "Diving48_vocab.json": '[["Back", "15som"], ["Inward", "25som"]]',
        "rgb/a_1.mp4": "",
    },
    "gym99": {
        "gym99_train.txt": "vid_E_000010_000030_A_0001_0002 3\n",
        "gym99_val.txt": "vid_E_000010_000030_A_0004_0005 98\n",
        "finegym_annotation_info.json": json.dumps({"vid": {"E_000010_000030": times("A_0001_0002", "A_0004_0005")}}),
        "vid.mp4": "",
    },
    "ucf101": {
        "classInd.txt": "1 Archery\r\n2 Bowling\r\n",
        "trainlist01.txt": "Archery/v_a_g01.avi 1\r\nBowling/v_b_g01.avi 2\r\n",
        "testlist01.txt": "Archery/v_a_g02.avi\r\n",
        "Archery/v_a_g01.avi": "",
    },
    "hmdb51": {
        "splits/clap_test_split1.txt": "a.avi 1 \nb.avi 2 \nc.avi 0 \n",
        "splits/wave_test_split1.txt": "a.avi 1 \nb.avi 2 \n",
        "clap/a.avi": "",
    },
    "frame_list": {"train.txt": "a 30 0\nb 20 1\n", "val.txt": "c 10 1\n", "category.txt": "x\ny\n", "a/1.jpg": ""},
    "clips": {
        "clips.csv": "path,label,split,start,end,group\na.avi,x,train,0,1.5,1\nb.avi,y,train,,,2\nc.avi,x,val,,,3\n"
    },
}


def write_set(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("name", SETS)
def test_mutated_annotations(tmp_path, name):
    files, rng = SETS[name], np.random.default_rng(3)
    data = DataConfig(format=name, root=str(tmp_path), **({"annotations": "clips.csv"} if name == "clips" else {}))
    write_set(tmp_path, files)
    whole = read_annotations(data)
    assert whole.train and whole.validation
    lists = [file for file, text in files.items() if text]
    outcomes = {"read": 0, "refused": 0}
    for number in range(120):
        file = lists[number % len(lists)]
        write_set(tmp_path, {file: mutated(files[file].encode(), rng, SCRAPS)})
        began = time.monotonic()
        found = outcome_of(lambda: read_annotations(data))
        if isinstance(found, str):
            outcomes["refused"] += 1
        else:
            for clip in (*found.train, *found.validation):
                assert 0 <= clip.label < len(found.labels)
                # Whatever stands in a list, its clips lie below the folder, or are named by an absolute path.
                inside = (
                    Path(clip.path).resolve().is_relative_to(tmp_path.resolve()) if "\0" not in clip.path else False
                )
                assert inside or clip.id.startswith("/"), clip
            outcomes["read"] += 1
        assert time.monotonic() - began < LONGEST
        write_set(tmp_path, {file: files[file]})
    assert outcomes["refused"] > 10


def outcome_of(call):
    """What the call gives, or the text of its error; any other error is a fault of ours."""
    try:
        return call()
    except (ClipError, DataError) as error:
        return str(error)


def choose(count):
    return np.linspace(0, count - 1, 4).astype(int)


@pytest.mark.parametrize("kind", ["h264.mp4", "vp9.webm", "mpeg4.avi", "open.mkv"])
def test_mutated_videos(tmp_path, kind):
    path = tmp_path / kind
    write_timed(path, (EVEN if kind == "mpeg4.avi" else UNEVEN)[:40], kind)
    source, rng, outcomes = path.read_bytes(), np.random.default_rng(2), {"read": 0, "refused": 0}
    for number in range(40):
        path.write_bytes(mutated(source, rng))
        part = {"start": 0.3, "end": 1.1} if number % 2 else {}
        began = time.monotonic()
        outcome = outcome_of(lambda part=part: read_frames(str(path), "video", choose, **part))
        if isinstance(outcome, str):
            outcomes["refused"] += 1
        else:
            assert outcome.shape[0] == 4 and outcome.shape[3] == 3 and outcome.dtype == np.uint8
            outcomes["read"] += 1
        assert time.monotonic() - began < LONGEST
    assert outcomes["refused"] + outcomes["read"] == 40 and outcomes["refused"]


def test_mutated_pictures(tmp_path):
    rng, path = np.random.default_rng(4), tmp_path / "1.jpg"
    picture = square_clip(1, 1)[0]
    sources = [tf.io.encode_jpeg(picture).numpy(), tf.io.encode_png(picture).numpy()]
    outcomes = {"read": 0, "refused": 0}
    for number in range(80):
        path.write_bytes(mutated(sources[number % 2], rng))
        window = (lambda height, width: (0, 0, max(height // 2, 1), max(width // 2, 1))) if number % 4 > 1 else None
        outcome = outcome_of(lambda window=window: read_frames(str(tmp_path), "frames", lambda n: [0], window=window))
        if isinstance(outcome, str):
            assert "1.jpg" in outcome or "pixels" in outcome
            outcomes["refused"] += 1
        else:
            assert outcome.shape[3] == 3
            outcomes["read"] += 1
    assert min(outcomes.values()) > 5


@pytest.mark.parametrize("suffix", ["webm", "avi", "mkv", "txt"])
def test_wrong_extension(tmp_path, suffix):
    """The content counts, not the name."""
    path = write_video(tmp_path / "a.mp4", square_clip(0, 0)).rename(tmp_path / f"b.{suffix}")
    assert len(read_frames(str(path), "video", np.arange)) == 8
    (tmp_path / "picture.mp4").write_bytes(tf.io.encode_jpeg(square_clip(0, 0)[0]).numpy())
    assert len(read_frames(str(tmp_path / "picture.mp4"), "video", np.arange)) == 1


def test_a_picture_of_very_many_scans(tmp_path):
    """Each scan of a progressive JPEG file costs a pass over the picture; 40 bytes make one more."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = tf.io.encode_jpeg(noise, progressive=True).numpy()
    assert 5 < content.count(b"\xff\xda") < 20
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(content)
    assert read_frames(str(folder), "frames", lambda n: [0]).shape == (1, 64, 64, 3)
    last = content[content.rindex(b"\xff\xda") : -2]
    (folder / "1.jpg").write_bytes(content[:-2] + 2000 * last + content[-2:])
    with pytest.raises(ClipError, match="scans of 64x64 pixels: too many"):
        read_frames(str(folder), "frames", lambda n: [0])


@pytest.mark.parametrize("kind", ["h264.mp4", "vp9.webm", "mpeg4.avi"])
def test_times_far_beyond_the_end(tmp_path, kind):
    """Annotations may give any number; what a file counts in has 64 bits."""
    write_timed(tmp_path / kind, EVEN[:20], kind)
    path = str(tmp_path / kind)
    for start in (1e9, 1e15, 1e300):
        with pytest.raises(ClipError, match="after the last of its 20 frames"):
            read_frames(path, "video", choose, start=start, end=None if start < 1e10 else 2 * start)
    whole = read_frames(path, "video", np.arange)
    assert np.array_equal(read_frames(path, "video", np.arange, start=0.0, end=1e300), whole) and len(whole) == 20
    with pytest.raises(ValueError, match="must be seconds"):
        read_frames(path, "video", choose, end=float("nan"))


def test_a_header_with_another_size(tmp_path, monkeypatch):
    """Frames come at their own size, and what they are all together has to keep to the limit."""
    path = tmp_path / "a.webm"
    write_timed(path, EVEN[:20], "vp9.webm")
    content, whole = path.read_bytes(), read_frames(str(path), "video", np.arange)
    places = [content.index(mark) + 2 for mark in (b"\xb0\x81", b"\xba\x81")]  # width and height, a byte each
    for size in (0, 8):
        changed = bytearray(content)
        for place in places:
            changed[place] = size
        path.write_bytes(changed)
        for part in ({}, {"start": 0.0, "end": 9.0}):
            assert np.array_equal(read_frames(str(path), "video", np.arange, **part), whole)
            with monkeypatch.context() as patch:
                patch.setattr(limits, "MAX_DECODED", 10 * 32 * 48)
                with pytest.raises(ClipError, match=r"too long: \d+ frames of 48x32"):
                    read_frames(str(path), "video", np.arange, **part)
