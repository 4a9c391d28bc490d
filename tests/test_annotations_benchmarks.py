"""Annotations of the benchmarks, as their authors ship them."""

import json

import pytest

from keras_stss.config import DataConfig
from keras_stss.data.annotations import DataError, read_annotations


def config(root, **values):
    return DataConfig(root=str(root), **values)


def error_of(data):
    with pytest.raises(DataError) as caught:
        read_annotations(data)
    return str(caught.value)


def put(path, text=""):
    """Writes a file with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def shown(root, clips):
    """(id, path below the root, label) of clips."""
    return [(clip.id, clip.path.removeprefix(f"{root}/"), clip.label) for clip in clips]


class TestKinetics:
    HEADER = "label,youtube_id,time_start,time_end,split\n"

    def write(self, root, train="archery,-0a_b,10,20,train\n", val="playing chess,yyy,0,10,validate\n", **files):
        put(root / "train.csv", self.HEADER + train)
        put(root / "val.csv", self.HEADER + val)
        for path in files.pop("videos", ["train/-0a_b_000010_000020.mp4"]):
            put(root / path)
        return config(root, format="kinetics", **files)

    def test_reads(self, tmp_path):
        data = self.write(tmp_path, videos=["train/archery/-0a_b_000010_000020.mkv", "v/yyy_000000_000010.mp4"])
        data_set = read_annotations(data)
        assert data_set.labels == ["archery", "playing chess"]
        assert shown(tmp_path, data_set.train) == [("-0a_b_000010_000020", "train/archery/-0a_b_000010_000020.mkv", 0)]
        assert shown(tmp_path, data_set.validation) == [("yyy_000000_000010", "v/yyy_000000_000010.mp4", 1)]
        assert data_set.train[0].start is None and data_set.train[0].kind == "video"

    def test_missing_video_is_no_fault(self, tmp_path, caplog):
        data_set = read_annotations(self.write(tmp_path))
        assert data_set.validation[0].path == str(tmp_path / "yyy_000000_000010.mp4")
        assert "1 of 2 clips have no file" in caplog.text

    def test_given_labels_set_the_order(self, tmp_path):
        put(tmp_path / "labels.txt", "playing chess\narchery\n")
        assert read_annotations(self.write(tmp_path, labels="labels.txt")).train[0].label == 1

    def test_one_file_for_both(self, tmp_path):
        both = "a,x,0,10,train\nb,y,0,10,test\n"
        put(tmp_path / "all.csv", self.HEADER + both)
        put(tmp_path / "x_000000_000010.mp4")
        data = config(tmp_path, format="kinetics", train="all.csv", validation="all.csv")
        data_set = read_annotations(data)
        assert [clip.id[0] for clip in data_set.train] == ["x"]
        assert [clip.id[0] for clip in data_set.validation] == ["y"]

    def test_same_video_at_two_times(self, tmp_path):
        data = self.write(tmp_path, train="a,x,0,10,train\na,x,10,20,train\n", videos=["x_000000_000010.mp4"])
        assert len(read_annotations(data).train) == 2

    @pytest.mark.parametrize(
        ("train", "part"),
        [
            ("a,x,0,10,train\na,x,0,10,train\n", "train.csv:3: duplicate id 'x_000000_000010'"),
            ("a,../x,0,10,train\n", "not a plain name"),
            ("a,x,10,10,train\n", "train.csv:2: the times must be seconds"),
            ("a,x,nan,10,train\n", "the times must be seconds"),
            ("a,x,0,1e999,train\n", "the times must be seconds"),
            ("a,x,0,10,test\n", "split must be train"),
            ("a,x,0,10\n", "4 fields, the header has 5"),
            (",x,0,10,train\n", "empty label"),
            ("", "lists no clip"),
        ],
    )
    def test_faults(self, tmp_path, train, part):
        assert part in error_of(self.write(tmp_path, train=train))

    def test_unknown_label(self, tmp_path):
        put(tmp_path / "labels.txt", "archery\n")
        assert "unknown label 'playing chess'" in error_of(self.write(tmp_path, labels="labels.txt"))

    def test_faults_of_both_lists_are_told_at_once(self, tmp_path):
        text = error_of(self.write(tmp_path, train="a,x,0,x,train\n", val="a,y,0,x,val\n"))
        assert "train.csv:2" in text and "val.csv:2" in text

    def test_column_missing(self, tmp_path):
        data = self.write(tmp_path)
        put(tmp_path / "train.csv", "label,youtube_id,time_start\na,x,0\n")
        assert "train.csv:1: the header must name" in error_of(data) and "time_end missing" in error_of(data)

    def test_nothing_there(self, tmp_path):
        text = error_of(config(tmp_path, format="kinetics"))
        assert str(tmp_path / "annotations" / "train.csv") in text and "id_000010_000020.mp4" in text
        assert "folders below it" in error_of(self.write(tmp_path, videos=[]))


class TestDiving48:
    VOCABULARY = '[["Back", "15som", "05Twis", "FREE"],\n ["Inward", "25som", "NoTwis", "PIKE"]]'

    def entry(self, name="-abc_00001", **values):
        return {"vid_name": name, "label": 1, "start_frame": 0, "end_frame": 90} | values

    def write(self, root, train=None, test=None, vocabulary=VOCABULARY):
        train, test = (
            value if isinstance(value, str) else json.dumps(value, indent=0)
            for value in (train or [self.entry()], test or [self.entry("b_2", label=0, start_frame=5)])
        )
        put(root / "Diving48_V2_train.json", train)
        put(root / "Diving48_V2_test.json", test)
        put(root / "Diving48_vocab.json", vocabulary)
        put(root / "rgb" / "-abc_00001.mp4")
        return config(root, format="diving48")

    def test_reads(self, tmp_path):
        data_set = read_annotations(self.write(tmp_path))
        assert data_set.labels == ["Back 15som 05Twis FREE", "Inward 25som NoTwis PIKE"]
        assert shown(tmp_path, data_set.train) == [("-abc_00001", "rgb/-abc_00001.mp4", 1)]
        assert data_set.train[0].frames == (0, 90) and data_set.validation[0].frames == (5, 90)
        assert data_set.validation[0].place.endswith("rgb/b_2.mp4 [frames 5-90]")

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            ({"train": [{"vid_name": "x"}]}, "train.json:2: an entry needs vid_name, label"),
            ({"train": [{"vid_name": "x", "label": True}]}, "an entry needs"),
            ({"train": ["x"]}, "an entry needs"),
            ({"train": "[]"}, "lists no clip"),
            ({"train": "{}"}, "must hold a list of clips"),
            ({"train": "["}, "not valid JSON"),
            ({"vocabulary": "[[1]]"}, "a dive must be a text or a list of texts"),
            ({"vocabulary": '["a", "a"]'}, "label 'a' 2 times"),
            ({"vocabulary": "[]"}, "names no label"),
        ],
    )
    def test_faults(self, tmp_path, change, part):
        assert part in error_of(self.write(tmp_path, **change))

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            ({"label": 2}, "train.json:2: unknown label 2"),
            ({"end_frame": 0}, "end_frame must be after start_frame"),
            ({"name": "../x"}, "not a plain name"),
            ({"start_frame": -1}, "an entry needs"),
        ],
    )
    def test_entries(self, tmp_path, change, part):
        assert part in error_of(self.write(tmp_path, train=[self.entry(**change)]))

    def test_duplicates(self, tmp_path):
        assert "duplicate vid_name '-abc_00001', first at" in error_of(self.write(tmp_path, train=[self.entry()] * 2))


TIMES = {
    "-vid_1": {
        "E_000100_000130": {
            "event": 1,
            "timestamps": [[100.5, 130.25]],
            "segments": {
                "A_0003_0005": {"stages": 1, "timestamps": [[3.25, 5.0]]},
                "A_0007_0009": {"stages": 3, "timestamps": [[7.0, 7.5], [7.5, 8.0], [8.0, 9.5]]},
            },
        },
        "E_000200_000210": {"event": 2, "timestamps": [[200.0, 210.0]], "segments": None},
    }
}


class TestFineGym:
    FIRST, SECOND = "-vid_1_E_000100_000130_A_0003_0005", "-vid_1_E_000100_000130_A_0007_0009"

    def write(
        self, root, train=f"{FIRST} 2\n", val=f"{SECOND} 98\n", times=None, videos=("a/-vid_1.mkv",), gym="gym99"
    ):
        put(root / "annotations" / f"{gym}_train_element_v1.1.txt", train)
        put(root / "annotations" / f"{gym}_val_element.txt", val)
        text = times if isinstance(times, str) else json.dumps(times or TIMES, indent=1)
        put(root / "annotations" / "finegym_annotation_info_v1.1.json", text)
        for path in videos:
            put(root / path)
        return config(root, format=gym)

    @pytest.mark.parametrize("gym", ["gym99", "gym288"])
    def test_parts_of_whole_videos(self, tmp_path, gym):
        data_set = read_annotations(self.write(tmp_path, gym=gym))
        (train,), (validation,) = data_set.train, data_set.validation
        assert len(data_set.labels) == int(gym[3:]) and data_set.labels[2] == "2"
        assert train.path == str(tmp_path / "a" / "-vid_1.mkv") and (train.start, train.end) == (103.75, 105.5)
        assert (validation.start, validation.end, validation.label) == (107.5, 110.0, 98)
        assert train.place == f"{train.path} [103.75-105.5 s]"

    def test_videos_that_are_cut_already_come_first(self, tmp_path):
        videos = ["-vid_1.mp4", "events/-vid_1_E_000100_000130.mp4", f"actions/{self.SECOND}.mp4"]
        data_set = read_annotations(self.write(tmp_path, videos=videos))
        (train,), (validation,) = data_set.train, data_set.validation
        assert train.path.endswith(videos[1]) and (train.start, train.end) == (3.25, 5.0)
        assert validation.path.endswith(videos[2]) and (validation.start, validation.end) == (None, None)

    def test_categories(self, tmp_path):
        data = self.write(tmp_path, train=f"{self.FIRST} 0\n", val=f"{self.SECOND} 1\n")
        lines = "Clabel: 0; set: 1; Glabel: 3; (VT) round-off, flic-flac; 1 turn\nClabel: 1; set: 11; (FX) leap\n"
        put(tmp_path / "gym99_categories.txt", lines)
        assert read_annotations(data).labels == ["(VT) round-off, flic-flac; 1 turn", "(FX) leap"]
        put(tmp_path / "gym99_categories.txt", "0 first\r\n1 second\r\n")
        assert read_annotations(data).labels == ["first", "second"]
        put(tmp_path / "gym99_categories.txt", "Clabel: 0; a\nClabel: 2; b\n")
        assert "without gaps" in error_of(data)
        put(tmp_path / "gym99_categories.txt", "Clabel: 0; a\nnothing\n")
        assert "gym99_categories.txt:2: wanted" in error_of(data)

    @pytest.mark.parametrize(
        ("train", "part"),
        [
            ("-vid_1_E_000100_000130 1\n", "train_element_v1.1.txt:1: wanted video_E"),
            (f"{FIRST}\n", "wanted video_E"),
            (f"{FIRST} 99\n", "unknown label 99"),
            (f"{FIRST} 1\n\n{FIRST} 1\n", "txt:3: duplicate id"),
            ("../x_E_1_2_A_3_4 1\n", "wanted video_E"),
            ("other_E_000100_000130_A_0003_0005 1\n", "no event E_000100_000130 of video other"),
            ("-vid_1_E_000200_000210_A_0003_0005 1\n", "no action A_0003_0005 in event E_000200_000210"),
        ],
    )
    def test_faults(self, tmp_path, train, part):
        assert part in error_of(self.write(tmp_path, train=train))

    @pytest.mark.parametrize("stamps", [None, [], [[1]], [[2.0, 1.0]], [["x", 1]], [[float("nan"), 1.0]], [[-1, 1]], 3])
    def test_bad_times(self, tmp_path, stamps):
        times = json.loads(json.dumps(TIMES))
        times["-vid_1"]["E_000100_000130"]["segments"]["A_0003_0005"]["timestamps"] = stamps
        text = error_of(self.write(tmp_path, times=times))
        assert "no good timestamps of E_000100_000130, A_0003_0005" in text and "info_v1.1.json:2" in text

    def test_a_video_given_twice(self, tmp_path):
        body = json.dumps(TIMES["-vid_1"])
        text = error_of(self.write(tmp_path, times=f'{{"-vid_1": {body},\n"-vid_1": {body}}}'))
        assert "info_v1.1.json:2: the key '-vid_1' is given twice" in text

    def test_names_given_in_the_config(self, tmp_path):
        self.write(tmp_path)
        (tmp_path / "annotations" / "finegym_annotation_info_v1.1.json").rename(tmp_path / "times.json")
        assert "the file of times" in error_of(config(tmp_path, format="gym99"))
        data = config(tmp_path, format="gym99", annotations="times.json", videos="a")
        assert read_annotations(data).train[0].path == str(tmp_path / "a" / "-vid_1.mkv")


class TestUcf101:
    def write(
        self, root, train="Archery/v_Archery_g08_c01.avi 1\r\n", test="Bowling/v_Bowling_g01_c01.avi\r\n", **values
    ):
        put(root / "ucfTrainTestlist" / "classInd.txt", values.pop("labels", "1 Archery\r\n2 Bowling\r\n"))
        for fold in (1, 2, 3):
            put(root / "ucfTrainTestlist" / f"trainlist0{fold}.txt", train.replace("c01", f"c0{fold}"))
            put(root / "ucfTrainTestlist" / f"testlist0{fold}.txt", test)
        put(root / "UCF-101" / "Archery" / "v_Archery_g08_c01.avi")
        put(root / "UCF-101" / "Bowling" / "v_Bowling_g01_c01.mp4")
        return config(root, format="ucf101", **values)

    def test_reads(self, tmp_path):
        data_set = read_annotations(self.write(tmp_path))
        assert data_set.labels == ["Archery", "Bowling"]
        name = "Archery/v_Archery_g08_c01"
        assert shown(tmp_path, data_set.train) == [(name, f"UCF-101/{name}.avi", 0)]
        assert shown(tmp_path, data_set.validation)[0][1] == "UCF-101/Bowling/v_Bowling_g01_c01.mp4"

    @pytest.mark.parametrize("fold", [1, 2, 3])
    def test_folds(self, tmp_path, fold):
        assert read_annotations(self.write(tmp_path, fold=fold)).train[0].id == f"Archery/v_Archery_g08_c0{fold}"

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            ({"train": "Archery/a.avi 2\n"}, "trainlist01.txt:1: the index of Archery is 1"),
            ({"train": "Diving/a.avi 1\n"}, "unknown label 'Diving'"),
            ({"train": "../a.avi 1\n"}, "wanted Class/video.avi"),
            ({"train": "Archery/../a.avi 1\n"}, "wanted Class/video.avi"),
            ({"train": "Archery/a.avi 1\nArchery/a.avi 1\n"}, "trainlist01.txt:2: duplicate path 'Archery/a'"),
            ({"train": ""}, "lists no clip"),
            ({"labels": "1 Archery\n1 Bowling\n"}, "classInd.txt:2: index 1 twice"),
            ({"labels": "0 Archery\n"}, "wanted an index from 1"),
            ({"labels": "1 Archery\n3 Bowling\n"}, "without gaps"),
        ],
    )
    def test_faults(self, tmp_path, change, part):
        assert part in error_of(self.write(tmp_path, **change))


class TestHmdb51:
    ODD = "#20_Rhythm_clap_u_nm_np1_fr_goo_0 (1);[x].avi"

    def write(self, root, clap=f"{ODD} 1 \nb.avi 2 \nc.avi 0\n", wave="w.avi 1\nv.avi 2\n", **values):
        for fold in (1, 2, 3):
            for name, text in (("clap", clap), ("wave", wave if fold == 1 else "w.avi 2\nv.avi 1\n")):
                put(root / "testTrainMulti_7030_splits" / f"{name}_test_split{fold}.txt", text)
        put(root / "hmdb51_org" / "clap" / self.ODD)
        return config(root, format="hmdb51", **values)

    def test_reads(self, tmp_path, caplog):
        data_set = read_annotations(self.write(tmp_path))
        assert data_set.labels == ["clap", "wave"]
        assert [clip.id for clip in data_set.train] == [f"clap/{self.ODD[:-4]}", "wave/w"]
        assert data_set.train[0].path == str(tmp_path / "hmdb51_org" / "clap" / self.ODD)
        assert [clip.id for clip in data_set.validation] == ["clap/b", "wave/v"]
        assert "HMDB-51 has 51" in caplog.text

    def test_folds(self, tmp_path):
        assert read_annotations(self.write(tmp_path, fold=2)).train[1].id == "wave/v"

    def test_folder_given_in_the_config(self, tmp_path):
        data = self.write(tmp_path, annotations="mine")
        assert "mine/*_test_split1.txt" in error_of(data)
        (tmp_path / "testTrainMulti_7030_splits").rename(tmp_path / "mine")
        assert len(read_annotations(data).train) == 2

    @pytest.mark.parametrize(
        ("clap", "part"),
        [
            ("a.avi 3\n", "clap_test_split1.txt:1: wanted a file name and 0, 1"),
            ("a.avi\n", "wanted a file name"),
            ("../a.avi 1\n", "wanted a file name"),
            ("a.avi 1\na.avi 2\n", "clap_test_split1.txt:2: duplicate name 'clap/a'"),
        ],
    )
    def test_faults(self, tmp_path, clap, part):
        assert part in error_of(self.write(tmp_path, clap=clap))


class TestFrameList:
    def write(self, root, train="a b/1 30 0\n", val="2 12 1\n", labels="Left\nRight\n", **values):
        put(root / "train_videofolder.txt", train)
        put(root / "val_videofolder.txt", val)
        if labels:
            put(root / "category.txt", labels)
        (root / "a b" / "1").mkdir(parents=True, exist_ok=True)
        return config(root, format="frame_list", **values)

    def test_reads(self, tmp_path):
        data_set = read_annotations(self.write(tmp_path))
        assert data_set.labels == ["Left", "Right"]
        (clip,) = data_set.train
        assert (clip.path, clip.kind, clip.frames, clip.place) == (
            str(tmp_path / "a b/1"),
            "frames",
            (0, 30),
            clip.path,
        )

    def test_videos_and_absolute_paths(self, tmp_path):
        data_set = read_annotations(self.write(tmp_path, train=f"{tmp_path}/x.mp4 30 0\na b/1 3 1\n"))
        assert data_set.train[0].path == f"{tmp_path}/x.mp4" and data_set.train[0].kind == "video"

    def test_without_names_of_classes(self, tmp_path, caplog):
        assert read_annotations(self.write(tmp_path, labels=None)).labels == ["0", "1"]
        assert "data.flip" in caplog.text

    @pytest.mark.parametrize(
        ("train", "part"),
        [
            ("1 30\n", "train_videofolder.txt:1: wanted path num_frames label"),
            ("1 0 0\n", "at least one frame"),
            ("1 x 0\n", "wanted path"),
            ("1 30 -1\n", "wanted path"),
            ("1 30 2\n", "unknown label 2 (1)"),
            ("../1 30 0\n", "leaves the folder"),
            ("1 30 0\n./1 30 0\n", "train_videofolder.txt:2: duplicate path '1'"),
            ("1 " + "9" * 5000 + " 0\n", "wanted path"),
            ("", "lists no clip"),
        ],
    )
    def test_faults(self, tmp_path, train, part):
        assert part in error_of(self.write(tmp_path, train=train))

    def test_label_that_is_no_label(self, tmp_path):
        assert "unknown label 1000000" in error_of(self.write(tmp_path, train="1 30 1000000\n", labels=None))

    def test_no_folder_there(self, tmp_path):
        assert "the folder of the clips" in error_of(self.write(tmp_path, videos="elsewhere"))


@pytest.mark.parametrize("name", DataConfig.model_fields["format"].annotation.__args__)
def test_every_format_tells_its_layout(tmp_path, name):
    data = config(tmp_path / "no", format=name, **({"annotations": "clips.csv"} if name == "clips" else {}))
    text = error_of(data)
    assert "data set not found" in text and "Wanted below data.root" in text


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends(tmp_path, line_end):
    """A byte order mark and any line end, in every file."""
    data = TestUcf101().write(tmp_path)
    for path in (tmp_path / "ucfTrainTestlist").iterdir():
        text = path.read_bytes().decode().replace("\r\n", line_end)
        path.write_bytes(("\ufeff" + text).encode())
    assert len(read_annotations(data).train) == 1


def test_no_list_is_that_long(tmp_path, monkeypatch):
    data = TestUcf101().write(tmp_path)
    monkeypatch.setattr("keras_stss.data.annotations.files.MAX_BYTES", 10)
    assert "too long for a list" in error_of(data)
