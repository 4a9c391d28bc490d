"""The check of a download, on a small set with everything wrong in it."""

import html.parser
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import square_clip, write_video

from keras_stss.cli import main
from keras_stss.config import DataConfig
from keras_stss.data.annotations import Clip, DataError
from keras_stss.data.prepare import check_data_set, look_at
from keras_stss.data.report import page, summary_lines, write_report

LABEL = 'push <b>"left" & right</b>'


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six clips that can be read, one missing, one empty, one damaged in the middle, one that is another one's copy."""
    folder = tmp_path_factory.mktemp("set")
    for number in range(4):
        write_video(folder / f"{number}.mp4", square_clip(number % 3, number, frames=12 + number))
    shutil.copy(folder / "0.mp4", folder / "copy.mp4")
    (folder / "empty.mp4").touch()
    (folder / "frames").mkdir()
    for number in range(5):
        content = tf.io.encode_jpeg(square_clip(0, 7)[number]).numpy()
        (folder / "frames" / f"{number}.jpg").write_bytes(content[: -200 if number == 3 else None])
    lines = [
        "path,label,split,start,end",
        f'0.mp4,"{LABEL.replace(chr(34), chr(34) * 2)}",train,,',
        "1.mp4,b,train,,",
        "2.mp4,b,train,0,0.5",
        "2.mp4,b,train,0.5,1",
        "frames,b,train,,",
        "empty.mp4,b,train,,",
        "3.mp4,b,val,,",
        "copy.mp4,b,val,,",
        "gone.mp4,c,val,,",
    ]
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return folder


def check(root, **given):
    values = {"format": "clips", "root": str(root), "annotations": "clips.csv", "workers": 2}
    return check_data_set(DataConfig(**values), **given)


class TestCheck:
    def test_what_is_there(self, root):
        report, _ = check(root)
        assert report["clips"] == {"train": 6, "validation": 3}
        assert report["missing"] == [str(root / "gone.mp4")]
        assert report["unreadable"] == {str(root / "empty.mp4"): "empty file (zero bytes)"}
        assert report["unusable_share"] == {"train": 1 / 6, "validation": 1 / 3} and not report["is_usable"]
        assert report["duplicates"] == {
            "same_content": [[str(root / "0.mp4"), str(root / "copy.mp4")]],
            "in_both_lists": [],
        }
        assert report["labels"] == [
            {"label": "b", "train": 5, "validation": 2, "readable": 6},
            {"label": "c", "train": 0, "validation": 1, "readable": 0},
            {"label": LABEL, "train": 1, "validation": 0, "readable": 1},
        ]
        assert report["warnings"] == ["1 of 3 labels have no training clip: 'c'"]

    def test_figures(self, root):
        report, _ = check(root)
        assert (report["frames"]["least"], report["frames"]["most"]) == (5, 15)
        assert report["frames"]["total"] == 12 + 13 + 6 + 6 + 5 + 15 + 12
        assert sum(report["frames"]["histogram"]["counts"]) == 7
        assert report["seconds"]["least"] == 0.5 and report["seconds"]["most"] == pytest.approx(1.25)
        assert report["sizes"] == {"40x32": 7}
        assert report["rates"] == {"12": 6} and report["codecs"] == {"mpeg4": 6}

    def test_every_frame(self, root):
        report, _ = check(root, depth="frames")
        assert report["unreadable"][str(root / "frames")] == "frame 3.jpg is damaged or cut short"
        assert report["frames"]["total"] == 12 + 13 + 6 + 6 + 15 + 12

    def test_files_only(self, root):
        report, _ = check(root, depth="files")
        assert len(report["unreadable"]) == len(report["missing"]) == 1
        assert report["frames"] is None and report["duplicates"] is None
        assert summary_lines(report) and page(report, [])

    def test_same_with_any_number_of_workers(self, root):
        assert check(root, workers=1)[0] == check(root, workers=5)[0]

    def test_progress_is_told(self, root):
        told = []
        check(root, advance=lambda *given: told.append(given))
        assert told[-1] == (9, 9)

    def test_clips_in_both_lists(self, tmp_path):
        for number in range(2):
            write_video(tmp_path / f"{number}.webm.mp4", square_clip(0, number))
        lists = {"train": "0.webm.mp4 8 0\n1.webm.mp4 8 0\n", "val": "1.webm.mp4 8 0\n"}
        for name, text in lists.items():
            (tmp_path / f"{name}.txt").write_text(text)
        report, _ = check_data_set(DataConfig(format="frame_list", root=str(tmp_path), workers=1))
        assert report["duplicates"] == {"same_content": [], "in_both_lists": [str(tmp_path / "1.webm.mp4")]}

    def test_fewer_frames_than_listed(self, tmp_path):
        for name in "ab":
            (tmp_path / name).mkdir()
            for number in range(3):
                (tmp_path / name / f"{number}.jpg").write_bytes(
                    tf.io.encode_jpeg(np.zeros((9, 9, 3), np.uint8)).numpy()
                )
        for name, text in (("train", "a 4 0\n"), ("val", "b 2 0\n")):
            (tmp_path / f"{name}.txt").write_text(text)
        report, _ = check_data_set(DataConfig(format="frame_list", root=str(tmp_path), workers=1))
        assert report["fewer_frames_than_listed"] == [str(tmp_path / "a")]
        assert (report["frames"]["least"], report["frames"]["most"]) == (2, 3)
        assert report["duplicates"]["same_content"] == [[str(tmp_path / "a"), str(tmp_path / "b")]]

    def test_one_clip(self, root):
        facts = look_at(Clip("1", str(root / "1.mp4"), 0, "video"))
        assert (facts.frames, facts.height, facts.width, facts.rate, facts.problem) == (13, 32, 40, 12.0, None)
        assert look_at(Clip("x", str(root / "x.mp4"), 0, "video")).is_missing

    def test_wrong_annotations(self, tmp_path):
        (tmp_path / "clips.csv").write_text("path\n")
        with pytest.raises(DataError, match=r"clips\.csv:1"):
            check(tmp_path)

    def test_unknown_depth(self, root):
        with pytest.raises(ValueError, match="depth must be one of files, packets, frames"):
            check(root, depth="all")


class Page(html.parser.HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


class TestReport:
    def test_page_needs_no_other_file(self, root, tmp_path):
        report, strips = check(root, samples=4)
        found = Page(write_report(report, strips, tmp_path / "r")[1].read_text(encoding="utf-8"))
        assert found.tags.count("img") == 4 * 6 and "script" not in found.tags
        assert all(link.startswith("data:image/jpeg;base64,") for link in found.links)

    def test_texts_stay_texts(self, root):
        """A label or path cannot put tags into the page."""
        report, strips = check(root)
        found = Page(page(report, strips))
        assert "b" in found.tags and LABEL in "".join(found.texts)
        assert found.tags.count("b") == len(strips)

    def test_samples_are_of_many_classes_and_the_same_every_time(self, root):
        first, second = check(root, samples=2)[1], check(root, samples=2)[1]
        assert {label for _, label, _ in first} == {"b", LABEL}
        assert first == second
        decoded = tf.io.decode_jpeg(first[0][2][0]).numpy()
        assert decoded.shape == (108, 135, 3)

    def test_json_holds_all(self, root, tmp_path):
        report, strips = check(root)
        path, _ = write_report(report, strips, tmp_path)
        assert json.loads(path.read_text()) == report

    def test_names_that_are_no_text(self, root, tmp_path):
        report, _ = check(root)
        report["missing"].append("bad\udce9name")
        assert "bad" in write_report(report, [], tmp_path)[1].read_text()


class TestCommand:
    def test_checks_and_writes(self, root, tmp_path, capsys):
        given = ["prepare", "clips", str(root), "--out", str(tmp_path / "out")]
        assert main(given) == 2  # a third of the validation clips is missing
        printed = capsys.readouterr()
        assert "1 missing, 1 unreadable" in printed.out and "gone.mp4: missing" in printed.out
        assert (tmp_path / "out" / "report.html").is_file()
        assert main([*given, "data.max_unreadable=0.5", "--json", "--depth", "files"]) == 0
        assert json.loads(capsys.readouterr().out)["clips"]["train"] == 6
        assert main([*given, "--samples", "-3"]) == 2
        assert "--samples must not be negative. Received: -3" in capsys.readouterr().err

    def test_nothing_there(self, tmp_path, capsys):
        assert main(["prepare", "kinetics", str(tmp_path)]) == 2
        assert "the train list is missing" in capsys.readouterr().err
