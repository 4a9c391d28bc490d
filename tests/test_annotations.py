import dataclasses
import json

import pytest

from keras_stss.config import DataConfig
from keras_stss.data.annotations import DataError, groups, natural_key, read_annotations
from keras_stss.data.annotations.data_set import Clip, DataSet

LABELS = ["Holding something", "Pushing something from left to right"]
LABEL_LINES = "\n".join(LABELS)


def v2_config(root, **values):
    return DataConfig(format="something_v2", root=str(root), **values)


def write_v2(root, train=None, validation=None, labels=None, folder="", prefix="something-something-v2-"):
    videos = root / "20bn-something-something-v2"
    videos.mkdir(parents=True, exist_ok=True)
    (videos / "1.webm").touch()
    (videos / "2.mp4").touch()
    (root / folder).mkdir(exist_ok=True)
    entry = {"label": "holding a cup", "template": "Holding [something]", "placeholders": ["a cup"]}
    lists = {
        "train": train if train is not None else [entry | {"id": "1"}],
        "validation": validation if validation is not None else [entry | {"id": 2}],
        "labels": labels if labels is not None else {LABELS[1]: "1", LABELS[0]: "0"},
    }
    for name, value in lists.items():
        text = value if isinstance(value, str) else json.dumps(value, indent=1)
        (root / folder / f"{prefix}{name}.json").write_text(text, encoding="utf-8")


def write_v1(root, train="1;Holding something\n", validation="2;Holding something\n", labels=LABEL_LINES):
    for clip_id in ("1", "2"):
        (root / "20bn-something-something-v1" / clip_id).mkdir(parents=True, exist_ok=True)
    for name, text in (("train", train), ("validation", validation), ("labels", labels)):
        (root / f"something-something-v1-{name}.csv").write_bytes(text.encode())


def write_clips(root, text, **values):
    (root / "clips.csv").write_bytes(text.encode())
    return DataConfig(format="clips", root=str(root), annotations="clips.csv", **values)


def error_of(data, **arguments):
    with pytest.raises(DataError) as caught:
        read_annotations(data, **arguments)
    return str(caught.value)


class TestSomethingV2:
    @pytest.mark.parametrize("folder", ["", "labels", "annotations"])
    @pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
    def test_reads_every_layout(self, tmp_path, folder, prefix):
        write_v2(tmp_path, folder=folder, prefix=prefix)
        data_set = read_annotations(v2_config(tmp_path))
        assert data_set.labels == LABELS
        (train,), (validation,) = data_set.train, data_set.validation
        assert (train.id, train.label, train.kind) == ("1", 0, "video")
        assert train.path.endswith("20bn-something-something-v2/1.webm")
        assert validation.path.endswith("2.mp4")

    def test_names_given_in_the_config(self, tmp_path):
        write_v2(tmp_path)
        for part in ("train", "validation", "labels"):
            (tmp_path / f"something-something-v2-{part}.json").rename(tmp_path / f"my_{part}.json")
        (tmp_path / "20bn-something-something-v2").rename(tmp_path / "elsewhere")
        names = {part: f"my_{part}.json" for part in ("train", "validation", "labels")}
        data_set = read_annotations(v2_config(tmp_path, videos="elsewhere", **names))
        assert data_set.train[0].path == str(tmp_path / "elsewhere" / "1.webm")

    def test_brackets_go_and_spaces_are_tidied(self, tmp_path):
        template = " Pushing [something]  from left to right\n"
        write_v2(tmp_path, train=[{"id": "1", "template": template}])
        assert read_annotations(v2_config(tmp_path)).train[0].label == 1

    def test_missing_video_stays_in_the_list(self, tmp_path):
        write_v2(tmp_path, train=[{"id": n, "template": LABELS[0]} for n in ("1", "77")])
        assert read_annotations(v2_config(tmp_path)).train[1].path.endswith("/77.webm")

    def test_clips_in_both_lists_are_told(self, tmp_path, caplog):
        write_v2(tmp_path, validation=[{"id": "1", "template": LABELS[0]}])
        assert len(read_annotations(v2_config(tmp_path)).validation) == 1
        assert "1 clips are both in training and in validation" in caplog.text

    def test_byte_order_mark(self, tmp_path):
        write_v2(tmp_path, train="\ufeff" + json.dumps([{"id": "1", "template": LABELS[0]}]))
        assert len(read_annotations(v2_config(tmp_path)).train) == 1

    def test_nothing_there(self, tmp_path):
        text = error_of(v2_config(tmp_path / "no"))
        assert "data set not found" in text and str(tmp_path / "no") in text
        assert "https://www.qualcomm.com/developer/software/something-something-v-2-dataset" in text
        assert "20bn-something-something-v2/1.webm" in text

    def test_lists_but_no_videos(self, tmp_path):
        write_v2(tmp_path)
        for path in (tmp_path / "20bn-something-something-v2").iterdir():
            path.unlink()
        assert "the folder of the clips" in error_of(v2_config(tmp_path))

    def test_list_missing_says_where_it_looked(self, tmp_path):
        write_v2(tmp_path)
        (tmp_path / "something-something-v2-validation.json").unlink()
        text = error_of(v2_config(tmp_path))
        assert "the validation list is missing" in text and str(tmp_path / "labels" / "validation.json") in text

    @pytest.mark.parametrize(
        ("lists", "parts"),
        [
            ({"train": "[{]"}, ["train.json:1", "not valid JSON"]),
            ({"train": "{}"}, ["must hold a list"]),
            ({"train": []}, ["lists no clip"]),
            ({"train": [{"id": "1"}]}, ["train.json:2", "needs id and template"]),
            ({"train": [{"id": "1", "template": "Flying"}]}, ["train.json:2", "unknown label 'Flying'"]),
            ({"train": [{"id": "../../etc/passwd", "template": LABELS[0]}]}, ["not a plain name"]),
            ({"train": [{"id": "1", "template": LABELS[0]}] * 2}, ["train.json:6: duplicate id '1'", "train.json:2"]),
            ({"labels": {LABELS[0]: "0", LABELS[1]: "2"}}, ["without gaps", "missing: [1]"]),
            ({"labels": {LABELS[0]: "0", LABELS[1]: "0"}}, ["index 0 twice"]),
            ({"labels": {LABELS[0]: "zero"}}, ["not a whole number", "zero"]),
            ({"labels": {LABELS[0]: "9" * 5000}}, ["not a whole number"]),
            ({"labels": {}}, ["names no label"]),
            ({"train": [{"id": str(n), "template": "?"} for n in range(20)]}, ["and 15 more, 20 faults"]),
            ({"train": "[" * 100_000}, ["not valid JSON"]),
        ],
    )
    def test_faults(self, tmp_path, lists, parts):
        write_v2(tmp_path, **lists)
        text = error_of(v2_config(tmp_path))
        for part in parts:
            assert part in text

    def test_faults_of_all_lists_are_told_at_once(self, tmp_path):
        write_v2(tmp_path, train=[{"id": "1"}], validation=[{"id": "1", "template": "Flying"}])
        text = error_of(v2_config(tmp_path))
        assert "train.json:2: an entry needs" in text and "validation.json:2: unknown label" in text

    def test_label_given_twice(self, tmp_path):
        write_v2(tmp_path, labels=f'{{"{LABELS[0]}": "0",\n"{LABELS[0]}": "1"}}')
        assert "labels.json:2: the key 'Holding something' is given twice" in error_of(v2_config(tmp_path))

    def test_not_text(self, tmp_path):
        write_v2(tmp_path)
        (tmp_path / "something-something-v2-train.json").write_bytes(b"\xff\xfe\x00\x01")
        assert "not UTF-8" in error_of(v2_config(tmp_path))


class TestSomethingV1:
    def config(self, root):
        return DataConfig(format="something_v1", root=str(root))

    def test_reads(self, tmp_path):
        write_v1(tmp_path, train="\ufeff1; Holding something \r\n\r\n")
        data_set = read_annotations(self.config(tmp_path))
        assert data_set.labels == LABELS
        (clip,) = data_set.train
        assert (clip.label, clip.kind, clip.path) == (0, "frames", str(tmp_path / "20bn-something-something-v1" / "1"))

    def test_line_number_is_the_index_and_quotes_are_read(self, tmp_path):
        write_v1(tmp_path, train='1;"Something; falling"\n', labels='Holding something\r\n"Something; falling"\r\n')
        assert read_annotations(self.config(tmp_path)).train[0].label == 1

    @pytest.mark.parametrize(
        ("lists", "part"),
        [
            ({"train": "1;Holding something\n\n1;Holding something\n"}, "train.csv:3: duplicate id '1'"),
            ({"train": "1\n"}, "wanted id;label text"),
            ({"train": "1;Flying\n"}, "unknown label 'Flying'"),
            ({"train": "..;Holding something\n"}, "not a plain name"),
            ({"train": "\n"}, "lists no clip"),
            ({"labels": "a\nb\na\n"}, "label 'a' 2 times"),
            ({"labels": ""}, "names no label"),
        ],
    )
    def test_faults(self, tmp_path, lists, part):
        write_v1(tmp_path, **lists)
        assert part in error_of(self.config(tmp_path))

    def test_nothing_there(self, tmp_path):
        text = error_of(self.config(tmp_path))
        assert "20BN release" in text and "00001.jpg" in text

    def test_holdout_belongs_to_clips(self, tmp_path):
        write_v1(tmp_path)
        assert "format 'clips'" in error_of(self.config(tmp_path), holdout="1")


class TestClips:
    def test_split_column(self, tmp_path):
        text = (
            "path,label,split\na.avi,wave 10,train\n b.avi , wave 2,val\nc.avi,wave 2,test\nd.avi,wave 2,validation\n"
        )
        data_set = read_annotations(write_clips(tmp_path, text))
        assert data_set.labels == ["wave 2", "wave 10"]
        assert [(clip.id, clip.label) for clip in data_set.train] == [("a.avi", 1)]
        assert [clip.id for clip in data_set.validation] == ["b.avi", "c.avi", "d.avi"]

    def test_mark_line_ends_quotes_and_blank_lines(self, tmp_path):
        text = '\ufeffpath,label,split\r\n\r\n"a, b.avi","x ""y""",train\r\n\r\nb.avi,x,val\r\n'
        data_set = read_annotations(write_clips(tmp_path, text))
        assert data_set.train[0].path == str(tmp_path / "a, b.avi")
        assert data_set.labels[data_set.train[0].label] == 'x "y"'

    def test_semicolons(self, tmp_path):
        assert read_annotations(write_clips(tmp_path, "path;label;split\na.avi;x;train\nb.avi;x;val\n")).labels == ["x"]

    def test_kinds_and_videos_folder(self, tmp_path):
        (tmp_path / "v" / "frames").mkdir(parents=True)
        text = "path,label,split\nframes,x,train\nb.avi,x,val\n"
        data_set = read_annotations(write_clips(tmp_path, text, videos="v"))
        assert data_set.train[0].kind == "frames" and data_set.validation[0].kind == "video"
        assert data_set.validation[0].path == str(tmp_path / "v" / "b.avi")

    def test_holdout_wins_over_split(self, tmp_path):
        text = "path,label,split,scene\n" + "".join(f"{n}.avi,x,train,{n}\n" for n in (1, 2, 10))
        data = write_clips(tmp_path, text, group_column="scene")
        assert groups(data) == ["1", "2", "10"]
        data_set = read_annotations(data, holdout="10")
        assert [clip.group for clip in data_set.validation] == ["10"]
        assert [clip.group for clip in data_set.train] == ["1", "2"]
        assert read_annotations(data.model_copy(update={"holdout": "2"})).validation[0].group == "2"

    def test_no_such_group(self, tmp_path):
        text = "path,label,scene\na.avi,x,1\nb.avi,x,2\n"
        assert "There are: 1, 2" in error_of(write_clips(tmp_path, text, group_column="scene"), holdout="3")
        assert "one at a time" in error_of(write_clips(tmp_path, text, group_column="scene", holdout="each"))
        missing = write_clips(tmp_path, text)
        assert "no column 'group'" in error_of(missing, holdout="1")
        with pytest.raises(DataError, match="no column 'group'"):
            groups(missing)

    def test_random_split_is_stratified_and_does_not_depend_on_row_order(self, tmp_path):
        rows = [f"{label}{n}.avi,{label}\n" for label in "ab" for n in range(10)]
        first = read_annotations(write_clips(tmp_path, "path,label\n" + "".join(rows)))
        again = read_annotations(write_clips(tmp_path, "path,label\n" + "".join(reversed(rows))))
        assert sorted(clip.label for clip in first.validation) == [0, 0, 1, 1]
        assert {clip.id for clip in first.validation} == {clip.id for clip in again.validation}
        assert not {clip.id for clip in first.validation} & {clip.id for clip in first.train}
        assert len(first.train) == 16

    @pytest.mark.parametrize("count", [2, 3, 7, 20])
    def test_random_split_keeps_groups_together(self, tmp_path, count):
        rows = [f"{group}_{label}_{n}.avi,{label},{group}\n" for group in range(count) for label in "ab" for n in "12"]
        data_set = read_annotations(write_clips(tmp_path, "path,label,group\n" + "".join(rows)))
        held = {clip.group for clip in data_set.validation}
        assert not held & {clip.group for clip in data_set.train}
        assert len(held) == max(1, round(0.2 * count))

    def test_large_share_leaves_something_to_train_on(self, tmp_path):
        rows = "".join(f"{n}.avi,x,{n % 2}\n" for n in range(10))
        data_set = read_annotations(write_clips(tmp_path, "path,label,group\n" + rows, validation_share=0.9))
        assert len(data_set.train) == len(data_set.validation) == 5

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("", "an empty file"),
            ("path,label\n", "lists no clip"),
            ("file,label\na,b\n", "clips.csv:1: the header must name the columns path and label; path missing"),
            ("path,label,label\na,b,c\n", "named twice: 'label'"),
            ("path,label\na.avi\n", "clips.csv:2: 1 fields, the header has 2"),
            ("path,label\na.avi,\n", "empty label"),
            ("path,label\na.avi,x\n\n./a.avi,x\n", "clips.csv:4: duplicate path './a.avi', first at line 2"),
            ("path,label\n../../etc/passwd,x\n", "clips.csv:2: the path '../../etc/passwd' leaves the folder"),
            ("path,label\na/../../b.avi,x\n", "leaves the folder"),
            ("path,label\n.,x\n", "leaves the folder"),
            ("path,label,split\na.avi,x,dev\n", "split must be train, val, validation or test. Received: 'dev'"),
            ("path,label,split\na.avi,x,train\n", "no clip is left for validation"),
            ("path,label,group\na.avi,x,\n", "empty group"),
            ("path,label,group\na.avi,x,1\nb.avi,x,1\n", "all clips are of one group"),
            ("path,label\na.avi,x\n", "there is one clip only"),
            ("path,label\na.avi,x\nb.avi,y\n", "every class is too small"),
            ('path,label\n"' + "a" * 200_000 + '",x\n', "not a CSV line"),
        ],
    )
    def test_faults(self, tmp_path, text, part):
        assert part in error_of(write_clips(tmp_path, text))

    def test_faults_are_counted(self, tmp_path):
        text = error_of(write_clips(tmp_path, "path,label\n" + "../x,y\n" * 12))
        assert "clips.csv:6" in text and "clips.csv:7" not in text and "and 7 more, 12 faults" in text

    def test_absolute_paths_headers_and_splits_in_other_words(self, tmp_path):
        text = "Path,LABEL,Split\n/clips/a.avi,x,Training\nb.avi,x,valid\n"
        data_set = read_annotations(write_clips(tmp_path, text))
        assert [clip.path for clip in data_set.train] == ["/clips/a.avi"]
        assert [clip.path for clip in data_set.validation] == [str(tmp_path / "b.avi")]

    def test_parts_of_videos(self, tmp_path):
        text = "path,label,Split,START,End\na.avi,x,train,,1.5\na.avi,x,train,1.5,3\nb.avi,x,val,0.25,\nc.avi,x,val,,\n"
        data_set = read_annotations(write_clips(tmp_path, text))
        assert [(clip.start, clip.end) for clip in data_set.train] == [(None, 1.5), (1.5, 3.0)]
        assert [(clip.start, clip.end) for clip in data_set.validation] == [(0.25, None), (None, None)]
        places = [clip.place.removeprefix(f"{tmp_path}/") for clip in (*data_set.train, *data_set.validation)]
        assert places == ["a.avi [0-1.5 s]", "a.avi [1.5-3 s]", "b.avi [0.25- s]", "c.avi"]

    def test_parts_of_a_video_stay_together_in_a_random_split(self, tmp_path):
        rows = "".join(f"{video}.avi,x,{start},{start + 1}\n" for video in range(6) for start in range(4))
        data_set = read_annotations(write_clips(tmp_path, "path,label,start,end\n" + rows))
        held = {clip.path for clip in data_set.validation}
        assert held and not held & {clip.path for clip in data_set.train}

    @pytest.mark.parametrize(
        ("row", "part"),
        [
            ("a.avi,x,2,1", "clips.csv:2: end must be after start. Received: start='2', end='1'"),
            ("a.avi,x,1,1", "end must be after start"),
            ("a.avi,x,-1,1", "start must be seconds"),
            ("a.avi,x,0,nan", "end must be seconds"),
            ("a.avi,x,0:10,", "start must be seconds"),
            ("folder,x,0,1", "a folder of frames has no times"),
            ("a.avi,x,0,1\n./a.avi,x,0.0,1.0", "clips.csv:3: duplicate path './a.avi'"),
        ],
    )
    def test_faults_of_parts(self, tmp_path, row, part):
        (tmp_path / "folder").mkdir()
        assert part in error_of(write_clips(tmp_path, f"path,label,start,end\n{row}\n"))

    def test_file_missing(self, tmp_path):
        data = DataConfig(format="clips", root=str(tmp_path), annotations="no.csv")
        assert str(tmp_path / "no.csv") in error_of(data)

    def test_label_without_training_clip_is_told(self, tmp_path, caplog):
        read_annotations(write_clips(tmp_path, "path,label,split\na.avi,x,train\nb.avi,y,val\n"))
        assert "'y'" in caplog.text


def test_natural_order():
    assert sorted(["f10", "f2", "f1", "f01", "g"], key=natural_key) == ["f01", "f1", "f2", "f10", "g"]
    assert sorted(["9" * 5000, "10"], key=natural_key)[0] == "10"


def test_the_digest_is_of_names_parts_and_labels():
    """Not of where the files lie: a run may go on with a copy of the set elsewhere."""
    clips = [Clip("a", "/x/a.mp4", 0, "video", start=1.0), Clip("b", "/x/b.mp4", 1, "video", frames=(0, 9))]
    base = DataSet(clips, clips[:1], ["x", "y"]).digest()

    def changed(**values):
        return DataSet([dataclasses.replace(clips[0], **values), clips[1]], clips[:1], ["x", "y"]).digest()

    assert changed(path="/y/a.mp4") == base
    others = [changed(id="c"), changed(label=1), changed(start=None), changed(end=2.0), changed(frames=(0, 9))]
    others += [DataSet(*lists, ["x", "y"]).digest() for lists in ((clips[::-1], clips[:1]), (clips, clips[1:]))]
    others.append(DataSet(clips, clips[:1], ["y", "x"]).digest())
    assert len({base, *others}) == 9
