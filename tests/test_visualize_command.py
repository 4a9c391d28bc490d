"""``keras-stss visualize``: what it writes, what it says of what cannot be read, and the page in a browser."""

import io
import json
import os
import re
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
import tensorflow as tf
from conftest import square_clip, write_video
from untrained import LABELS, write_runs

from keras_stss.cli import main
from keras_stss.config import DataConfig
from keras_stss.visualize import VisualizeError, embedding, principal_components, t_sne
from keras_stss.visualize.embedding import embedding_picture
from keras_stss.visualize.page import folder_names


@pytest.fixture(scope="module")
def run(clip_set, tmp_path_factory):
    return write_runs(clip_set, tmp_path_factory.mktemp("runs"))[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Clips of several kinds and sizes, and what is none."""
    folder = tmp_path_factory.mktemp("files")
    write_video(folder / "large.mp4", square_clip(0, 1, height=72, width=96))
    (folder / "else").mkdir()
    write_video(folder / "else" / "large.mp4", square_clip(1, 1, frames=1))
    (folder / "frames").mkdir()
    for number, frame in enumerate(square_clip(2, 2, frames=6)):
        tf.io.write_file(str(folder / "frames" / f"{number:05}.jpg"), tf.io.encode_jpeg(frame))
    (folder / "broken.mp4").write_bytes(b"no video at all")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="module")
def shown(run, files, tmp_path_factory):
    """(exit code, what it printed, folder) of one call with all kinds of clips."""
    out = tmp_path_factory.mktemp("shown") / "seen"
    names = ("large.mp4", "broken.mp4", "else/large.mp4", "frames", "empty", "missing.mp4")
    call = ["visualize", str(run), *(str(files / name) for name in names), "--clips", "1", "--pca", "--most", "5"]
    with pytest.MonkeyPatch.context() as patch:
        lines = {"stdout": [], "stderr": []}
        for name, kept in lines.items():
            patch.setattr(sys, name, _Kept(kept))
        code = main([*call, "--point", "20,9,1", "--class", "red square", "--out", str(out)])
    return code, {name: "".join(kept) for name, kept in lines.items()}, out


class _Kept:
    def __init__(self, kept):
        self.write = kept.append

    def flush(self):
        pass

    def isatty(self):
        return False


def test_what_can_be_read_is_shown_and_the_rest_named(shown, files):
    code, printed, out = shown
    assert code == 2
    failures = [line for line in printed["stderr"].splitlines() if line.startswith(str(files))]
    assert [line.split(":")[0].rpartition("/")[2] for line in failures] == ["broken.mp4", "empty", "missing.mp4"]
    assert failures[2].endswith("missing.mp4: no such file")
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert len(folders) == 4 and {"large", "large-2", "frames"} < set(folders)
    names = ("confidence-res3.png", "grad-cam.png", "motion-res3.png", "overlay.mp4", "similarity-res3.png")
    for folder in folders:
        assert tuple(sorted(path.name for path in (out / folder).iterdir())) == names
    with av.open(str(out / "frames" / "overlay.mp4")) as video:
        assert len(list(video.decode(video=0))) == 4 and video.streams.video[0].codec_context.name == "h264"
    # The run has no motion block, and one clip is a single frame.
    assert "This model has no displacements of its own (no motion block" in printed["stdout"]
    assert "All frames of this clip are the same: there is no motion to see." in printed["stdout"]


def test_the_page_holds_everything_itself(shown, files):
    _, _, out = shown
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("data:video/mp4") == 4 and page.count('<img src="data:image/png') == 4 * 4 + 1
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "5 of 7 clips of the validation set, by principal components" in page
    assert "missing.mp4" in page and str(files / "frames") in page
    rows = (out / "features.csv").read_text().splitlines()
    assert rows[0] == "clip,label,predicted,x,y" and len(rows) == 6 and rows[1].split(",")[1] in LABELS


def test_the_page_opens_in_a_browser_without_an_error(shown, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium on this machine")
    call = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    call += [f"--user-data-dir={tmp_path}", (shown[2] / "index.html").as_uri()]
    done = subprocess.run(call, capture_output=True, text=True, timeout=600)
    assert "CONSOLE" not in done.stderr, done.stderr
    # The script has run: it takes the controls away.
    assert done.stdout.count("<video") == 4 and "controls" not in re.search("<video[^>]*>", done.stdout)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name files, or take some of the run's clips by --clips N, or its features by --tsne or --pca"),
        (["x.mp4", "--point", "1,2"], "--point wants three numbers X,Y,T with commas between. Received: 1,2"),
        (["x.mp4", "--set", "a.csv"], "--set belongs to --tsne and --pca"),
        (["--pca", "--perplexity", "3"], "--perplexity belongs to --tsne"),
        (["x.mp4", "--class", "red"], "no class 'red' among the 3. Did you mean: 'red square'"),
        (["x.mp4", "--stage", "res7"], "the model has no stage 'res7'. It has: pool1, res2"),
        (["x.mp4", "--member", "0"], "the model is no ensemble"),
        (["--point", "32,0,0", "x.mp4"], "the point must lie inside the clip: x from 0 to 31"),
    ],
)
def test_what_cannot_be_asked(run, tmp_path, capsys, options, message):
    assert main(["visualize", str(run), *options, "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1] and lines[-1].startswith("keras-stss: ")
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_has_moved(run, clip_set, tmp_path, capsys):
    """The files are shown without it; data.root says where its clips are now."""
    moved = shutil.copytree(run, tmp_path / "run")
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace(str(clip_set), str(tmp_path / "gone")))
    call = ["visualize", str(moved), "--clips", "1", "--out", str(tmp_path / "out"), "--json"]
    assert main([*call, str(clip_set / "0.mp4")]) == 2
    shown, failed, _ = sorted(
        (json.loads(line) for line in capsys.readouterr().out.splitlines()), key=len, reverse=True
    )
    assert shown["file"] == str(clip_set / "0.mp4") and failed["file"] == "--clips" and "(data.root)" in failed["error"]
    assert main(call) == 2
    assert "data set not found" in capsys.readouterr().err
    assert main([*call, f"data.root={clip_set}"]) == 0
    taken = tmp_path / "taken"
    taken.write_text("")
    assert main(["visualize", str(run), "x.mp4", "--out", str(taken)]) == 2
    assert f"{taken} is a file" in capsys.readouterr().err


def test_names_that_cannot_be_printed(run, clip_set, tmp_path, monkeypatch):
    """A name that is no UTF-8, on an output that knows ASCII alone."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xc3\xbc.mp4")
    shutil.copy(clip_set / "0.mp4", name)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii", write_through=True))
    assert main(["visualize", str(run), name, "--out", str(tmp_path / "out")]) == 0
    assert b"/\\udcff\\xfc.mp4: " in printed.getvalue()


def test_features_that_are_no_numbers(monkeypatch):
    class Scorer:
        def __init__(self, model):
            pass

        def score(self, clips, *others):
            return np.arange(2), np.array([[1.0, np.nan], [0, 0]]), {}

    monkeypatch.setattr(embedding, "Scorer", Scorer)
    monkeypatch.setattr(embedding, "feature_model", lambda model: model)
    with pytest.raises(VisualizeError, match="features of 1 of 2 clips are no numbers"):
        embedding.set_features(None, [None, None], DataConfig(format="ucf101", root="."), 2)


def test_features_of_a_csv_as_json(run, clip_set, tmp_path, capsys):
    """Clips of a CSV, whatever their split; one cannot be read."""
    listed = tmp_path / "some.csv"
    rows = [f"{clip_set / f'{number}.mp4'},{'ABCABC'[number]} kind" for number in range(6)]
    listed.write_text("\n".join(["path,label", *rows, "gone.mp4,A kind"]) + "\n")
    out = tmp_path / "out"
    assert main(["visualize", str(run), "--pca", "--set", str(listed), "--out", str(out), "--json"]) == 2
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found[0] == {"file": str(tmp_path / "gone.mp4"), "error": "no such file"}
    assert found[1] == {"page": str(out / "index.html")}
    assert len((out / "features.csv").read_text().splitlines()) == 7
    listed.write_text("path,label\ngone.mp4,A kind\n")
    assert main(["visualize", str(run), "--pca", "--set", str(listed), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "1 of 1 clips cannot be read" in said and "allows" not in said  # all that are asked for may be
    assert main(["visualize", str(run), "--pca", "--set", str(tmp_path / "no.csv"), "--out", str(out)]) == 2
    assert f"--pca: no such file: {tmp_path / 'no.csv'}" in capsys.readouterr().err


def test_principal_components_are_the_directions_of_largest_spread():
    generator = np.random.default_rng(0)
    plane = generator.normal(size=(200, 2)) * (9, 3)
    directions = np.linalg.qr(generator.normal(size=(7, 7)))[0][:, :2]
    found = principal_components(plane @ directions.T + 5 + 0.01 * generator.normal(size=(200, 7)))
    own = np.linalg.svd(plane - plane.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs(own[0] * own[1]), atol=0.1)


def test_t_sne_keeps_groups_together_and_checks_its_perplexity(monkeypatch):
    generator = np.random.default_rng(1)
    features = np.concatenate([generator.normal(center, 1, (12, 5)) for center in (0, 40)])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn.manifold", None)
        with pytest.raises(VisualizeError, match=r"pip install 'keras-stss\[visualize\]', or .* \(--pca\)"):
            t_sne(features)
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    places, perplexity = t_sne(features)
    assert perplexity == pytest.approx(23 / 3)
    away = np.linalg.norm(places[:, None] - places, axis=-1)
    assert away[:12, :12].max() < away[:12, 12:].min()
    with pytest.raises(VisualizeError, match=r"below the number of clips, 24. Received: 24"):
        t_sne(features, 24)
    with pytest.raises(VisualizeError, match=r"at least 4 clips. There are: 3"):
        t_sne(features[:3])


def test_points_have_the_colour_of_their_class():
    places = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], "float32")
    picture = embedding_picture(places, [0, 1, 0, 1], ["$a", "b"], None, "a title")
    seen = {tuple(color) for color in picture.reshape(-1, 3)}
    assert {(31, 119, 180), (255, 127, 14)} < seen and (64, 72, 80) not in seen
    crossed = embedding_picture(places, [0, 1, 0, 1], ["$a", "b"], [True, False, False, False], "a title")
    assert (picture != crossed).any()
    # The grey of the classes without colours is nobody's: only letters have some of it at their edges.
    many = embedding_picture(places[[0] * 19], range(19), [str(number) for number in range(19)], None, "a title")
    assert max((many == grey).all(-1).sum() for grey in (127, 199)) < 20


def test_folders_of_clips_are_different_and_plain():
    assert folder_names(["a", "A", "x/ y", "..", "a"]) == ["a", "A-2", "x-y", "clip", "a-3"]
