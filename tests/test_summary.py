"""The picture of a run at its end, from metrics.jsonl alone."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from keras_stss.training.showing import summary
from keras_stss.training.showing.summary import plot_run


def read(path):
    return tf.io.decode_png(path.read_bytes(), 3).numpy()


def row(epoch, **values):
    first = {"epoch": epoch, "step": 10 * epoch, "learning_rate": 0.1, "train_loss": 1.0, "train_top1": 0.5}
    return first | {"clips_per_second": 9.0} | values


def test_a_finished_run(trained_run, tmp_path):
    shutil.copy(trained_run / "metrics.jsonl", tmp_path)
    path = plot_run(tmp_path)
    assert path == tmp_path / "summary.png" and read(path).shape == (800, 1200, 3)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.jsonl", "summary.png"]


@pytest.mark.parametrize("epochs", [1, 60])
def test_curves_are_where_the_figures_are(tmp_path, monkeypatch, epochs):
    """Validated now and then, without the share of waiting in the first half, and with a loss that is no number."""
    rows = [row(epoch, train_loss=2.0 / epoch) for epoch in range(1, epochs + 1)]
    for each in rows[::2]:
        each.update(val_loss=float("nan"), val_top1=0.25, best_epoch=1)
    for each in rows[epochs // 2 :]:
        each["wait_share"] = 0.03
    rows[-1]["best_epoch"] = 1
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    figures, make = [], summary.drawing.figure
    monkeypatch.setattr(summary.drawing, "figure", lambda *size: figures.append(make(*size)) or figures[-1])
    plot_run(tmp_path)
    loss, top1, rate, speed, waiting = figures[0].axes
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [(e, 2.0 / e) for e in range(1, epochs + 1)])
    assert len(top1.lines[1].get_xdata()) == len(rows[::2])
    assert top1.lines[2].get_xydata().tolist() == [[1, 0.25]]  # around the best
    assert rate.get_ylim()[0] == speed.get_ylim()[0] == 0
    assert [bar.get_height() for bar in waiting.patches] == [0.03] * (epochs - epochs // 2)
    assert "best.keras is of epoch 1: validation top-1 25.0%" in figures[0].get_suptitle()
    assert all(float(tick).is_integer() for axes in (loss, rate) for tick in axes.get_xticks())


def test_no_run_ends_for_want_of_a_picture(tmp_path, caplog):
    assert plot_run(tmp_path) is None and "no summary.png" in caplog.text
    (tmp_path / "metrics.jsonl").write_text("")
    assert plot_run(tmp_path) is None and len(caplog.records) == 1
