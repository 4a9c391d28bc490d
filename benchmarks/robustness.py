"""Robustness (SELFY 4.5) of models of the ablation: the centre frame damaged, and what befalls video.

    python benchmarks/robustness.py            # scores what is not scored yet, then the tables and the plot
    python benchmarks/robustness.py --table    # tables and plot of what is kept

Takes the runs of benchmarks/ablations.py, which trains them. A call that was stopped goes on. The figures are kept in
benchmarks/results/robustness.json, the tables and the plot in docs/.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from ablations import LONGER_ROW, NAMES, SCENES, Row, figures_of, run_folder

from keras_stss.data.synthetic import long_range

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "robustness.json"
PAGE = ROOT / "docs" / "evaluation.md"
PLACES = ("robustness centre", "robustness scenes", "robustness video")
ROWS = (Row("tsn", "{-1…1}"), Row("tsn", "{-2…2}"), Row("tsn", "{-3…3}"), Row("tsm", "{-3…3}"), LONGER_ROW)
CENTRE = ("center_occlusion", "center_motion_blur")
DAMAGES = (("selfy",), ("video", "--severities", "1,3,5"))
TOLD = 0.5  # of the clean clips: what a row tells less often says nothing about damage


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablations", help="folder of the runs")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the data set")
    parser.add_argument("--seeds", type=int, default=3, help="runs of a row (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="score nothing")
    options = parser.parse_args()
    if not options.table:
        for seed in range(options.seeds):
            for row in ROWS:
                for damage in DAMAGES:
                    keep(measure(row, seed, damage, options))
    runs = json.loads(RESULT.read_text(encoding="utf-8"))["runs"]
    write_page(runs)
    print(centre_table(runs), scenes_table(runs), video_table(runs), sep="\n\n")


# --- figures ----------------------------------------------------------------------------------------------------------


def measure(row, seed, damage, options):
    """Scores a run on one of ``DAMAGES``; returns its record."""
    from keras_stss.cli import main as run
    from keras_stss.evaluation.scores import Scores

    folder = run_folder(options.runs, row, seed)
    if not (folder / "best.keras").exists():
        sys.exit(f"{folder} is no finished run: python benchmarks/ablations.py --only {row.name} trains it")
    root = f"data.root={options.data / 'long_range_packed'}"
    if run(["robustness", str(folder), "--corruptions", *damage, "--out", str(folder), root]):
        sys.exit(f"{folder} could not be scored")
    found = json.loads((folder / "robustness.json").read_text(encoding="utf-8"))
    (figures,) = found["runs"]

    def told(name):
        scores = Scores.load(folder / "scores" / f"{name}.npz")
        figures = figures_of(scores.label, scores.logits)
        figures.pop("order")
        return figures | directions(scores.label, scores.logits)

    damaged = {
        name: [
            {"severity": each["severity"], **told(f"robustness/{found['protocol']}-{name}-{each['severity']}")}
            for each in rows
        ]
        for name, rows in figures["corruptions"].items()
    }
    return {"row": row.name, "seed": seed, "clean": told(found["protocol"]), "corruptions": damaged}


def directions(labels, logits):
    """Shares of clips: "backwards", taken for the class that is their film run backwards, and "motion", of the clips of
    one scene those whose motion is told where the number of scenes is not asked for.

    Args:
        labels: (N,). logits: (N, K), of the classes of the long_range set.
    """
    backwards = np.array([long_range.REVERSED[label] for label in labels])
    likely = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    motions = np.argmax(likely.reshape(len(labels), SCENES, -1).sum(1), 1)
    one = np.array([long_range.scenes_of(label) == 1 for label in labels])
    return {
        "backwards": float((np.argmax(logits, 1) == backwards).mean()),
        "motion": float((motions == labels % len(long_range.MOTIONS))[one].mean()),
    }


def keep(record):
    """Writes a run's record beside those of the others; its figures of other corruptions stay."""
    from keras_stss.bench import machine

    known = json.loads(RESULT.read_text(encoding="utf-8"))["runs"] if RESULT.exists() else []
    runs = {(run["row"], run["seed"]): run for run in known}
    key = record["row"], record["seed"]
    before = runs.get(key, {}).get("corruptions", {})
    runs[key] = record | {"corruptions": before | record["corruptions"]}
    result = {"runs": [runs[each] for each in sorted(runs)], "machine": machine.describe()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def shares(runs, row, name, severity, figure=lambda each: each["top1"]):
    """What each run of a row keeps: ``figure`` as a share of that on clean clips.

    Args:
        runs: records. row: :class:`ablations.Row`. name, severity: of the corruption. figure: of a record's figures.

    Returns:
        Array, a value a seed; empty where nothing was measured.
    """
    found = []
    for run in runs:
        for each in run["corruptions"].get(name, []) if run["row"] == row.name else []:
            if each["severity"] == severity:
                found.append(figure(each) / (figure(run["clean"]) or np.nan))
    return np.array(found)


def severities(runs, name):
    """All severities of a corruption that were measured."""
    return sorted({each["severity"] for run in runs for each in run["corruptions"].get(name, [])})


# --- tables -----------------------------------------------------------------------------------------------------------


def label(row):
    """A row's name for the reader."""
    return f"{NAMES[row.temporal]} {row.offsets}" + (", 24 epochs" if row.longer > 1 else "")


def cell(values, digits=1):
    """Mean, and standard deviation of several, in percent."""
    if not len(values):
        return "–"
    spread = f" ± {100 * np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.{digits}f}{spread}"


def _lines(headers, rows):
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def centre_table(runs):
    """Markdown: relative accuracy over all classes, by the severity of the centre frame's damage."""
    steps = severities(runs, CENTRE[0])
    rows = []
    for name in CENTRE:
        for row in ROWS:
            clean = [run["clean"]["top1"] for run in runs if run["row"] == row.name]
            found = [cell(shares(runs, row, name, step)) for step in steps]
            rows.append([name.replace("_", " "), label(row), cell(clean), *found, str(len(clean))])
    return _lines(["damage", "model", "top-1, clean", *map(str, steps), "runs"], rows)


def scenes_table(runs):
    """Markdown: the centre frame all black, by number of scenes: what is kept of what a row can tell."""
    last = severities(runs, CENTRE[0])[-1]
    rows = []
    for row in ROWS:
        cells = [label(row)]
        for number in range(SCENES):
            clean = [run["clean"]["scenes"][number] for run in runs if run["row"] == row.name]
            found = shares(runs, row, CENTRE[0], last, lambda each, n=number: each["scenes"][n])
            cells += [cell(found) if clean and np.mean(clean) > TOLD else "–"]
        rows.append(cells)
    return _lines(["model", "one scene", "two scenes", "three scenes"], rows)


def video_table(runs):
    """Markdown: what is kept of one scene's accuracy, the mean over severities."""
    names = list(dict.fromkeys(name for run in runs for name in run["corruptions"] if name not in CENTRE))
    rows = []
    for row in ROWS:
        cells = [label(row)]
        for name in names:
            found = [shares(runs, row, name, step, one_scene) for step in severities(runs, name)]
            cells.append(cell(np.mean(found, 0)) if all(map(len, found)) else "–")
        steps = severities(runs, "dropped_frames")
        found = [shares(runs, row, "dropped_frames", step, lambda each: each["motion"]) for step in steps]
        cells.append(cell(np.mean(found, 0)) if all(map(len, found)) else "–")
        ends = [
            run["corruptions"]["reversed_frames"][0]["backwards"]
            for run in runs
            if run["row"] == row.name and "reversed_frames" in run["corruptions"]
        ]
        rows.append([*cells, cell(ends)])
    return _lines(
        [
            "model",
            *(name.replace("_", " ") for name in names),
            "dropped: motion alone",
            "reversed, taken for its reverse",
        ],
        rows,
    )


def one_scene(figures):
    return figures["scenes"][0]


def write_page(runs):
    """Puts tables and plot into their places."""
    from keras_stss.bench.tables import write_into

    for place, text in zip(PLACES, (centre_table(runs), scenes_table(runs), video_table(runs)), strict=True):
        write_into(PAGE, place, f"{text}\n")
    plot(runs, PAGE.parent / "robustness.svg")


def plot(runs, path):
    """What is kept of one scene's accuracy over severity: a panel a corruption, a curve a row, a band over seeds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "robustness", "svg.fonttype": "none"})
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for run in runs for name in run["corruptions"]))
    figure, axes = pyplot.subplots(2, -(-len(names) // 2), figsize=(15, 6), layout="constrained", squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names):
        for number, row in enumerate(ROWS):
            _curve(axis, runs, row, name, f"C{number}")
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xticks([0, *severities(runs, name)])
        axis.set_ylim(0, 108)
        axis.grid(alpha=0.3)
    figure.supylabel("kept of the top-1 on clean clips of one scene, %")
    figure.supxlabel("severity")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(ROWS), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _curve(axis, runs, row, name, colour):
    found = {step: 100 * shares(runs, row, name, step, one_scene) for step in severities(runs, name)}
    found = {0: np.array([100.0])} | {step: values for step, values in found.items() if len(values)}
    if len(found) == 1:
        return
    steps = list(found)
    axis.plot(steps, [each.mean() for each in found.values()], f"{colour}o-", markersize=3, label=label(row))
    axis.fill_between(
        steps, *([way(each) for each in found.values()] for way in (np.min, np.max)), color=colour, alpha=0.15
    )


if __name__ == "__main__":
    main()
