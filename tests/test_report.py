"""The report page: of whole runs, half ones, many classes, hostile names, and clips that are gone or broken."""

import json
import shutil

import numpy as np
import pytest
import yaml
from browser import browser, find_browser
from conftest import tiny_values
from markup import Parsed

from keras_stss.cli import main
from keras_stss.config import ConfigError, load_config
from keras_stss.data.annotations import read_annotations
from keras_stss.evaluation.figures import all_figures
from keras_stss.evaluation.metrics import softmax
from keras_stss.evaluation.robustness import figures_of, with_means
from keras_stss.evaluation.scores import Scores
from keras_stss.models import ensemble, load_model
from keras_stss.report.build import write_report
from keras_stss.report.charts import Curve, chart
from keras_stss.report.choose import disputed, mistakes, samples, scored_by_all
from keras_stss.report.classes import near_order
from keras_stss.report.results import is_number
from keras_stss.report.runs import clips_of, read_runs

HOSTILE = ['<script>alert("1")</script>', "دفع شيء من اليمين", "物を左から右へ押す & <b>'más'</b>"]


def write_run(folder, root, logits=None, protocol="1x1", epochs=3, has_model=True):
    """A run's folder as training and evaluation leave it, without the training; ``logits`` of the validation clips."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tiny_values(root, folder)))
    data_set = read_annotations(load_config(folder / "config.yaml").data)
    (folder / "labels.json").write_text(json.dumps(data_set.labels))
    rows = [{"epoch": epoch, "train_loss": 3 / epoch, "train_top1": 0.2 * epoch} for epoch in range(1, epochs + 1)]
    rows = [{**row, "learning_rate": 0.1, "val_top1": 0.1 * row["epoch"], "best_epoch": row["epoch"]} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if has_model:
        (folder / "best.keras").write_bytes(b"no model")
    if logits is not None:
        clips = data_set.validation
        unreadable = {"lost.mp4": "no <such> file"}
        scores = Scores.of(clips, (np.arange(len(clips)), logits, unreadable), {"model": None, "clips": "these"})
        (folder / "scores").mkdir(exist_ok=True)
        scores.save(folder / "scores" / f"{protocol}.npz")
        (folder / f"evaluation-{protocol}.json").write_text(json.dumps(all_figures(scores, data_set.labels)))
    return folder


@pytest.fixture(scope="module")
def hostile(clip_set, tmp_path_factory):
    """(folder of two runs, their data set): hostile names, a broken clip and a lost one."""
    folder = tmp_path_factory.mktemp("hostile")
    root = folder / "set"
    root.mkdir()
    lines = ["path,label,split"]
    for number in range(12):
        shutil.copy(clip_set / f"{number}.mp4", root / f"<i>{number}.mp4")
        quoted = HOSTILE[number % 3].replace('"', '""')
        lines.append(f'<i>{number}.mp4,"{quoted}",{"train" if number < 3 else "validation"}')
    (root / "clips.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = (root / "<i>3.mp4").read_bytes()
    (root / "<i>3.mp4").write_bytes(content[: len(content) // 2])
    (root / "<i>4.mp4").unlink()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write_run(folder / name, root, rng.normal(0, 2, (9, 3)).astype(np.float32))
    return folder, root


def report(folders, tmp_path, **given):
    """(what write_report says, the page as :class:`Parsed`), the page being checked."""
    found = write_report(folders, tmp_path / "page.html", **given)
    page = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not page.problems
    links = [value for _, tag in page.tags for key, value in tag.items() if key in ("src", "href", "poster")]
    assert all(link.startswith(("data:", "#")) for link in links)
    return found, page


class TestPage:
    def test_two_runs(self, hostile, tmp_path):
        """Names stay text, both runs are on it, and clips that cannot be read cost only themselves."""
        folder, root = hostile
        found, page = report([folder / "a", folder / "b"], tmp_path, clips=9, overlays=0)
        assert {"Results", "Training", "Classes", "Confusion", "Calibration", "Config", "Versions"} < {
            *found["sections"]
        }
        assert all("style" in given for given in page.all("i")) and len(page.all("script")) == 1
        for name in (*HOSTILE, "<i>5.mp4", "no <such> file"):
            assert name in page.text
        assert found["clips"]["shown"] == len(page.all("video")) == 7
        assert {str(root / "<i>3.mp4"), str(root / "<i>4.mp4")} == set(found["clips"]["failed"])
        assert found["clips"]["failed"][str(root / "<i>4.mp4")] == "no such file"
        assert "no such file" in page.text
        assert [line["what"] for line in found["missing"]] == ["robustness", "robustness"]
        assert f"keras-stss robustness {folder / 'a'}" in page.text

    def test_figures_are_those_of_the_scores(self, hostile, tmp_path):
        folder, _ = hostile
        found, page = report([folder / "a"], tmp_path, clips=0)
        scores = Scores.load(folder / "a" / "scores" / "1x1.npz")
        right = np.argmax(scores.logits, axis=1) == scores.label
        assert found["runs"][0]["protocols"]["1x1"]["top1"] == pytest.approx(right.mean())
        assert f"top-1 {right.mean():.1%}" in page.text
        cells = [data for name, data in page.texts if name == "title" and " → " in data]
        assert sum(int(text.split(": ")[-1].split(" of ")[0]) for text in cells) == 9
        on_the_diagonal = [text for text in cells if text.split(" → ")[1].startswith(text.split(" → ")[0])]
        assert sum(int(text.split(": ")[-1].split(" of ")[0]) for text in on_the_diagonal) == right.sum()
        assert found["clips"] == {"shown": 0, "failed": {}} and not page.all("video")

    def test_config_differences(self, hostile, tmp_path):
        folder, root = hostile
        other = write_run(tmp_path / "c", root)
        text = (other / "config.yaml").read_text().replace("learning_rate: 0.05", "learning_rate: 0.125")
        (other / "config.yaml").write_text(text)
        _, page = report([folder / "a", other], tmp_path, clips=0)
        # A key may be broken behind its dots.
        cells = "|".join(data for name, data in page.texts if name == "td")
        assert "train.|learning_rate|0.05|0.125" in cells and "train.|epochs" not in cells

    def test_robustness_of_either_file(self, hostile, tmp_path):
        """One file in the first run's folder holds both runs."""
        folder, _ = hostile
        runs, labels = [], 3
        for name in ("a", "b"):
            scores = Scores.load(folder / name / "scores" / "1x1.npz")
            clean = figures_of(scores, labels)
            rows = [{"severity": number, **figures_of(scores, labels, clean)} for number in (1, 2)]
            runs.append(with_means({"run": str(folder / name), "clean": clean, "corruptions": {"motion_blur": rows}}))
        first = shutil.copytree(folder / "a", tmp_path / "a")
        runs[0]["run"] = str(first)
        (first / "robustness.json").write_text(json.dumps({"protocol": "1x1", "seed": 0, "runs": runs}))
        found, page = report([first, folder / "b"], tmp_path, clips=0)
        assert "Robustness" in found["sections"] and not found["missing"]
        assert "motion blur" in page.text and page.text.count("100.0%") >= 4
        # Of paths that count from another folder than this one, too.
        second = shutil.copytree(folder / "b", tmp_path / "b")
        text = (first / "robustness.json").read_text().replace(str(folder / "b"), "b").replace(str(first), "a")
        (first / "robustness.json").write_text(text)
        assert not report([first, second], tmp_path, clips=0)[0]["missing"]

    def test_half_a_run(self, hostile, tmp_path):
        """A run that is still training, whose last line is cut."""
        _, root = hostile
        run = write_run(tmp_path / "run", root, epochs=2, has_model=False)
        with open(run / "metrics.jsonl", "a") as file:
            file.write('{"epoch": 3, "tr')
        found, page = report([run], tmp_path)
        assert found["sections"] == ["Training", "Cost", "Config", "Versions", "What is missing"]
        assert found["runs"][0]["epochs"] == 2 and len(found["notes"]) == 1
        assert "no best.keras yet" in page.text and "not evaluated yet" in page.text

    def test_nothing_but_a_config(self, hostile, tmp_path):
        _, root = hostile
        run = write_run(tmp_path / "run", root, epochs=0, has_model=False)
        assert "Training" not in report([run], tmp_path)[0]["sections"]

    def test_data_that_moved(self, hostile, tmp_path):
        """The page comes without clips, and says how it would have them."""
        folder, root = hostile
        run = shutil.copytree(folder / "a", tmp_path / "run")
        text = (run / "config.yaml").read_text().replace(str(root), str(tmp_path / "gone"))
        (run / "config.yaml").write_text(text)
        found, page = report([run], tmp_path)
        assert found["clips"]["shown"] == 0 and "data.root=…" in page.text and "Confusion" in found["sections"]
        found, _ = report([run], tmp_path, overrides=[f"data.root={root}"], overlays=0)
        assert found["clips"]["shown"] == 7
        with pytest.raises(ConfigError, match=r"unknown key data\.rot\. Did you mean root"):
            report([run], tmp_path, overrides=[f"data.rot={root}"])

    def test_damaged_files(self, hostile, tmp_path):
        folder, _ = hostile
        run = shutil.copytree(folder / "a", tmp_path / "run")
        (run / "evaluation-1x1.json").write_text("{")
        (run / "evaluation-10x1.json").write_text("[]")
        (run / "robustness.json").write_text('{"runs": [3]}')
        (run / "scores" / "10x1.npz").write_bytes(b"PK")
        found, page = report([run], tmp_path, overlays=1)
        assert "Results" in found["sections"]  # from the scores
        assert len(found["notes"]) >= 4 and "--protocol 1x1 --again" in page.text
        assert any("no pictures of what run sees" in note for note in found["notes"])  # best.keras is none

    def test_many_classes_and_clips(self, tmp_path):
        """A page stays small: 174 classes, 2,000 clips, of which none is there any more."""
        root = tmp_path / "set"
        root.mkdir()
        lines = [f"{number}.mp4,class {number % 174},{'train' if number < 174 else 'val'}" for number in range(2174)]
        (root / "clips.csv").write_text("path,label,split\n" + "\n".join(lines) + "\n")
        logits = np.random.default_rng(1).normal(0, 1, (2000, 174)).astype(np.float32)
        found, page = report([write_run(tmp_path / "run", root, logits)], tmp_path)
        assert found["bytes"] < 600_000
        assert found["clips"]["shown"] == 0 and len(found["clips"]["failed"]) == 24
        assert page.text.count("No clip can be read") == 1
        (data,) = [text for name, text in page.texts if name == "script" and text.startswith("{")]
        data = json.loads(data)
        assert sorted(data["labels"]) == sorted(f"class {number}" for number in range(174))
        assert sum(clips for _, _, clips in data["runs"][0]) == 2000

    def test_many_runs_of_few_classes(self, hostile, tmp_path):
        """Their matrices are small: they keep names and figures. A clip has a line of each run, the others open."""
        folders = [shutil.copytree(hostile[0] / "a", tmp_path / str(number)) for number in range(5)]
        found, page = report(folders, tmp_path, clips=1, overlays=0)
        lists = page.all("ol", **{"class": "guesses"})
        assert found["clips"]["shown"] > 0 and len(lists) == 10 * found["clips"]["shown"] and "top-5" in page.text
        assert not page.all("img") and len(page.all("svg", **{"class": "grid"})) == 5

    def test_scores_that_are_no_numbers(self, hostile, tmp_path):
        """Nothing is drawn at places that are none, and the page says it."""
        run = shutil.copytree(hostile[0] / "a", tmp_path / "run")
        scores = Scores.load(run / "scores" / "1x1.npz")
        scores.logits[::2] = np.nan
        scores.save(run / "scores" / "1x1.npz")
        (run / "evaluation-1x1.json").write_text(json.dumps(all_figures(scores, read_runs([run])[0].labels)))
        found, page = report([run], tmp_path, clips=0)
        assert "the scores of run by 1x1 are no numbers for 5 clips" in found["notes"]
        assert not any(
            "nan" in value for _, given in page.tags for key, value in given.items() if key in ("cx", "points")
        )

    def test_other_labels(self, hostile, clip_set, tmp_path):
        folder, _ = hostile
        other = write_run(tmp_path / "other", clip_set)
        with pytest.raises(ConfigError, match=r"labels of a \(3\) and other \(3\) are different.*make a page for each"):
            write_report([folder / "a", other])

    def test_runs_of_one_name(self, hostile):
        folder, _ = hostile
        with pytest.raises(ConfigError, match="named twice"):
            read_runs([folder / "a", folder / "b" / ".." / "a"])


class TestParts:
    def test_chosen_clips(self, hostile):
        folder, _ = hostile
        runs = read_runs([folder / "a", folder / "b"])
        scored = scored_by_all([(run.scores["1x1"], clips_of(run, run.scores["1x1"])) for run in runs])
        right = scored.said == scored.label
        assert set(mistakes(scored, 9)) <= set(np.flatnonzero(~right.any(axis=0)))
        assert set(disputed(scored, 9)) == set(np.flatnonzero(right.any(axis=0) & ~right.all(axis=0)))
        assert [scored.label[place] for place in samples(scored, 3)] == [0, 1, 2]
        assert samples(scored, 99, without={0, 5}) == sorted(
            {*range(9)} - {0, 5}, key=lambda place: (scored.label[place], place)
        )
        scores = runs[0].scores["1x1"]
        np.testing.assert_allclose(scored.probabilities[0], softmax(scores.logits))
        alone = scored_by_all([(scores, clips_of(runs[0], scores))])
        sure = [alone.probabilities[0, place].max() for place in mistakes(alone, 9)]
        assert sure == sorted(sure, reverse=True) and len(sure) > 1

    def test_order_of_classes(self):
        """Two groups that are never taken for one another come apart again after a shuffle."""
        groups = np.random.default_rng(2).permutation(20) % 2
        counts = np.where(groups[:, None] == groups, 3, 0) + 40 * np.eye(20, dtype=int)
        order = near_order(counts)
        assert sorted(order) == list(range(20)) and np.count_nonzero(np.diff(groups[order])) == 1
        chain = np.random.default_rng(3).permutation(12)
        counts = np.eye(12, dtype=int) * 9
        counts[chain[:-1], chain[1:]] = 2
        found = near_order(counts).tolist()
        assert found in (chain.tolist(), chain[::-1].tolist())

    @pytest.mark.parametrize(
        "points",
        [
            [(1, 0.5)],
            [(1, 2.0), (2, 2.0)],
            [(1, float("nan")), (2, None), (3, 1e-9)],
            [(n, n * 1e6) for n in range(999)],
            [(1, 0.5), (float("nan"), 0.7)],
            [],
        ],
    )
    def test_charts_of_unusual_numbers(self, points):
        for y_range in (None, (0, None), (0, 1)):
            found = Parsed(chart("<t>", [Curve(points, "red", "<n>")], "epoch", y_range=y_range, whole_x=True))
            assert not found.problems and "nan" not in found.text and "inf" not in found.text
            places = [given["points"] for given in found.all("polyline")]
            assert all(0 <= float(x) <= 360 for text in places for x in text.replace(",", " ").split()[::2])
            assert sum(len(text.split()) for text in places) <= 402

    def test_all_and_nothing_are_numbers(self):
        """An accuracy of 1 or 0 has its point and its ring; None, no number and a truth value have none."""
        values = (1.0, 1, 0.0, 0, 0.5, float("nan"), float("inf"), None, True, False, "1")
        assert [is_number(value) for value in values] == [True] * 5 + [False] * 6


@pytest.fixture(scope="module")
def finished(trained_run, tmp_path_factory):
    """A trained run that was evaluated, and its page with what the network sees."""
    run = shutil.copytree(trained_run, tmp_path_factory.mktemp("finished") / "run")
    assert main(["evaluate", str(run), "--protocol", "1x1"]) == 0
    return run


class TestCommand:
    def test_a_trained_run(self, finished, capsys):
        capsys.readouterr()
        assert main(["report", str(finished), "--json", "--clips", "3", "--overlays", "2", "--title", "A <title>"]) == 0
        found = json.loads(capsys.readouterr().out)
        text = (finished / "report.html").read_text(encoding="utf-8")
        page = Parsed(text)
        assert not page.problems and found["bytes"] == len(text.encode()) and found["notes"] == []
        assert ("title", "A <title>") in page.texts
        assert len(page.all("video")) == found["clips"]["shown"] + 2
        assert found["runs"][0]["parameters"] > 1000 and found["runs"][0]["epochs"] == 4
        assert "best.keras saved by Keras" in page.text and "what the network sees" in page.text
        assert "This model has no displacements of its own" in page.text
        assert "0.00 G" not in page.text and "0.00 M" not in page.text  # of a small model, too

    def test_an_ensemble_beside_the_config_of_a_member(self, finished, tmp_path):
        """As docs/models.md makes one: what its first network sees, and no cost, which would be the member's."""
        run = shutil.copytree(finished, tmp_path / "run")
        model = load_model(run)
        ensemble([(model, 2), (model, 4)]).save(run / "best.keras")
        found = write_report([run], clips=1, overlays=1)
        page = Parsed((run / "report.html").read_text(encoding="utf-8"))
        assert "what the first network of run sees" in page.text and "Cost" not in found["sections"]
        assert any("best.keras is an ensemble" in note for note in found["notes"])

    def test_scores_of_an_earlier_model(self, finished, tmp_path, capsys):
        run = shutil.copytree(finished, tmp_path / "run")
        (run / "best.keras").write_bytes(b"another")
        assert main(["report", str(run), "--overlays", "0"]) == 0
        assert "are of an earlier best.keras: keras-stss evaluate" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (["nowhere"], "nowhere is not a run directory"),
            (["nowhere", "--clips", "-1"], "--clips must not be negative"),
            (["nowhere", "--clips", "0", "elsewhere"], "nowhere is not a run directory"),
            (["nowhere", "--out", "."], "--out names the page, a file; . is a folder"),
            (["nowhere", "model.width=3"], "report changes only data"),
            (["data.root=x"], "name a run directory"),
        ],
    )
    def test_what_the_user_can_mend(self, given, message, capsys):
        assert main(["report", *given]) == 2
        assert message in capsys.readouterr().err

    @pytest.mark.skipif(find_browser() is None, reason="no Chromium on this machine")
    def test_in_a_browser(self, hostile, finished, tmp_path):
        """No console error, no page wider than a phone, classes are found, clips play."""
        folder, _ = hostile
        write_report([folder / "a", folder / "b"], tmp_path / "two.html", overlays=0)
        write_report([finished], tmp_path / "one.html", clips=3, overlays=1)
        with browser() as chromium:
            for name in ("one", "two"):
                for dark in (False, True):
                    chromium.open(tmp_path / f"{name}.html", 375, 700, dark=dark)
                    assert chromium.run("document.documentElement.scrollWidth") == 375
                played = """(async () => {
                  const video = document.querySelector('video');
                  await video.play();
                  while (!(video.currentTime > 0)) await new Promise(done => setTimeout(done, 50));
                  return video.videoWidth > 0;
                })()"""
                assert chromium.run(played)
                # On paper bars and the runs' colours are there, too, though browsers leave out grounds.
                chromium.ask("Emulation.setEmulatedMedia", media="print")
                for name in ("bar", "swatch"):
                    adjusted = f"getComputedStyle(document.querySelector('.{name}')).printColorAdjust"
                    assert chromium.run(adjusted) == "exact"
                assert chromium.messages == []
