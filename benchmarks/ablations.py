"""Table 3 of the SELFY paper in small: offset sets, extraction and integration, on the harder embedded data set.

    python benchmarks/ablations.py            # what is not done yet, then the tables and plots
    python benchmarks/ablations.py --table    # tables and plots of what there is

A process a run, each with one thread. A run that was killed goes on where it stopped. The figures are kept in
benchmarks/results/ablations.json, the tables and plots in docs/.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from keras_stss.data.synthetic import long_range

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "ablations" / "long_range.yaml"
RESULT = ROOT / "benchmarks" / "results" / "ablations.json"
PAGE = ROOT / "docs" / "ablations.md"
#: Table 3a's sets of temporal offsets, but {0}: a frame beside itself shows no motion. "none" is without a block.
OFFSETS = {
    "none": (),
    "{1}": (1,),
    "{-1…1}": (-1, 0, 1),
    "{-2…2}": (-2, -1, 0, 1, 2),
    "{-3…3}": (-3, -2, -1, 0, 1, 2, 3),
}
FOLDERS = dict(zip(OFFSETS, ("none", "next", "within1", "within2", "within3"), strict=True))
#: Table 3b's parts, with the widths of their layers here.
EXTRACTIONS = {"soft_argmax": None, "mlp": (16, 16, 16), "conv": (4, 8, 16)}
INTEGRATIONS = {"fc": None, "mlp": (32, 32), "conv": (32, 32)}
EPOCHS = 6  # of the config
SCENES = len(long_range.CUTS)
BLOCK = "model.insert.res2.selfy"
PLACES = ("ablations offsets", "ablations parts", "ablations answers")
NAMES = {"tsn": "TSN", "tsm": "TSM"}
THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the tables: what differs from the config."""

    temporal: str = "tsm"
    offsets: str = "{-3…3}"
    extraction: str = "conv"
    integration: str = "conv"
    longer: int = 1  # by how much

    @property
    def name(self):
        """Of its folder."""
        if self.offsets == "none":
            return f"{self.temporal}-none" + (f"-longer{self.longer}" if self.longer > 1 else "")
        return "-".join([self.temporal, FOLDERS[self.offsets], self.extraction, self.integration])

    def overrides(self):
        """What the command line says after the config."""
        if self.offsets == "none":
            epochs = self.longer * EPOCHS
            longer = [f"train.epochs={epochs}", f"evaluate.every={epochs}"] if self.longer > 1 else []
            return [f"model.temporal={self.temporal}", "model.insert={}", *longer]
        values = {
            "temporal_offsets": OFFSETS[self.offsets],
            "extraction": self.extraction,
            "extraction_channels": EXTRACTIONS[self.extraction],
            "integration": self.integration,
            "integration_channels": INTEGRATIONS[self.integration],
        }
        return [f"model.temporal={self.temporal}", *(f"{BLOCK}.{k}={json.dumps(v)}" for k, v in values.items())]


OFFSET_ROWS = [Row(temporal, offsets) for temporal in NAMES for offsets in OFFSETS]
LONGER_ROW = Row(offsets="none", longer=4)  # what TSM alone comes to when it has the time
PART_ROWS = [Row(extraction=one, integration=two) for one in EXTRACTIONS for two in INTEGRATIONS]
ROWS = {row.name: row for row in [*OFFSET_ROWS, *PART_ROWS, LONGER_ROW]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablations", help="folder of the runs")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the data set, made where missing")
    parser.add_argument("--only", default="", help="rows whose name has this text, such as tsn or conv-fc")
    parser.add_argument("--seeds", type=int, default=3, help="runs of a row (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time (default: one a core)")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.exit(train_one(ROWS[options.one[0]], int(options.one[1]), options))
    failed = [] if options.table else train_all(options)
    runs = json.loads(RESULT.read_text(encoding="utf-8"))["runs"]
    write_page(runs)
    print(offset_table(runs) + "\n\n" + part_table(runs))
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


# --- runs -------------------------------------------------------------------------------------------------------------


def train_all(options):
    """Trains what is missing, seed by seed; returns the names of the runs that failed."""
    prepare_data(options.data)
    wanted = [(row, seed) for seed in range(options.seeds) for row in ROWS.values() if options.only in row.name]
    done = {(run["row"], run["seed"]) for run in finished(options.runs)}
    left = [(row, seed) for row, seed in wanted if (row.name, seed) not in done]
    print(f"{len(wanted) - len(left)} of {len(wanted)} runs are there", flush=True)
    failed = []

    def one(row, seed):
        command = [
            sys.executable,
            __file__,
            "--one",
            row.name,
            str(seed),
            "--runs",
            options.runs,
            "--data",
            options.data,
        ]
        folder = run_folder(options.runs, row, seed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.log", "ab") as log:
            code = subprocess.run(
                command, stdout=log, stderr=log, env=os.environ | dict.fromkeys(THREADS, "1")
            ).returncode
        return f"{row.name}, seed {seed}", code

    with ThreadPoolExecutor(options.jobs) as pool:
        for name, code in pool.map(lambda pair: one(*pair), left):
            failed += [name] if code else []
            keep(finished(options.runs))
            print(f"{name}: {'failed, see its log' if code else 'done'}", flush=True)
    return failed


def prepare_data(folder):
    """Draws and packs the data set where it is not there."""
    if (folder / "long_range_packed" / "manifest.json").exists():
        return
    from keras_stss.cli import main as run
    from keras_stss.data.synthetic import prepare

    prepare(folder / "long_range", variant="long_range")
    if run(["prepare", "pack", "something_v2", str(folder / "long_range"), str(folder / "long_range_packed")]):
        sys.exit("the data set could not be packed")


def run_folder(runs, row, seed):
    return runs / f"{row.name}-{seed}"


def train_one(row, seed, options):
    """Trains and scores one run in this process; leaves its figures in its folder."""
    from keras_stss.cli import main as run

    folder = run_folder(options.runs, row, seed)
    begun = folder.exists()
    places = [f"data.root={options.data / 'long_range_packed'}", f"train.run={folder}", f"train.seed={seed}"]
    code = run(["train", "--config", str(CONFIG), *row.overrides(), *places]) or run(["evaluate", str(folder)])
    if code:
        return code
    with np.load(folder / "scores.npz") as scores:
        figures = figures_of(scores["label"], scores["logits"])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = None if begun else round(usage.ru_utime + usage.ru_stime, 1)  # of a part of a run they say nothing
    record = {"row": row.name, "seed": seed, **figures, "cpu_seconds": seconds}
    (folder / "figures.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return 0


def figures_of(labels, logits):
    """Shares of clips that are told right.

    Args:
        labels: (N,). logits: (N, K), of the classes of the long_range set.

    Returns:
        dict of ``"top1"``, and of ``"scenes"`` and ``"order"``, one for each number of scenes: top-1, and the forced
        choice between a class and the one that is its film run backwards.
    """
    right = np.argmax(logits, 1) == labels
    scenes = np.array([long_range.scenes_of(label) for label in labels])
    backwards = np.array([long_range.REVERSED[label] for label in labels])
    clips = np.arange(len(labels))
    ordered = logits[clips, labels] > logits[clips, backwards]
    groups = [scenes == number for number in range(1, SCENES + 1)]
    return {
        "top1": float(right.mean()),
        "scenes": [float(right[group].mean()) for group in groups],
        "order": [float(ordered[group].mean()) for group in groups],
    }


def finished(runs):
    """The records of all finished runs in a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(runs.glob("*/figures.json"))]


def keep(runs):
    """Writes the records, with what they were measured on; those of runs whose folders are gone stay."""
    from keras_stss.bench import machine

    known = json.loads(RESULT.read_text(encoding="utf-8"))["runs"] if RESULT.exists() else []
    merged = {(run["row"], run["seed"]): run for run in [*known, *runs]}
    result = {"runs": [merged[key] for key in sorted(merged)], "machine": machine.describe()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


# --- tables -----------------------------------------------------------------------------------------------------------


def known(row):
    """Share of clips that frames of these offsets can tell, at best, where the backbone sees each frame apart.

    Of a number of scenes that no offset reaches, nothing is known: one guess among all their classes.
    """
    reach = max(map(abs, OFFSETS[row.offsets]), default=0)
    return (min(reach, SCENES) * len(long_range.MOTIONS) + (reach < SCENES)) / len(long_range.TEMPLATES)


def summary(runs, row, figure=lambda run: run["top1"]):
    """(mean, standard deviation or None, values) of a row's runs; None where there are none."""
    values = [figure(run) for run in sorted(runs, key=lambda run: run["seed"]) if run["row"] == row.name]
    if not values:
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, values


def cell(found):
    """Text of a summary, in percent."""
    if found is None:
        return "–"
    mean, deviation, _ = found
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def offset_table(runs):
    """Markdown: a line for each backbone and offset set."""
    words = ("one scene", "two scenes", "three scenes")
    lines = [
        f"| model | offsets | at best, if frames are apart | top-1 | {' | '.join(words)} | seeds: top-1 |",
        "|---" * (5 + SCENES) + "|",
    ]
    for row in [*OFFSET_ROWS, LONGER_ROW]:
        found = summary(runs, row)
        name = row.offsets if row.longer == 1 else f"{row.offsets}, {row.longer * EPOCHS} epochs"
        cells = [NAMES[row.temporal], name, f"{100 * known(row):.1f}" if row.temporal == "tsn" else ""]
        cells.append(f"**{cell(found)}**" if found else "–")
        cells += [cell(summary(runs, row, lambda run, n=number: run["scenes"][n])) for number in range(SCENES)]
        cells.append(", ".join(f"{100 * value:.1f}" for value in found[2]) if found else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def part_table(runs):
    """Markdown: extraction by integration."""
    lines = [f"| extraction | {' | '.join(INTEGRATIONS)} |", "|---" * (1 + len(INTEGRATIONS)) + "|"]
    for extraction in EXTRACTIONS:
        rows = [Row(extraction=extraction, integration=integration) for integration in INTEGRATIONS]
        lines.append(f"| {extraction} | {' | '.join(cell(summary(runs, row)) for row in rows)} |")
    return "\n".join(lines)


def questions():
    """(what is asked, one row, the other row, number of scenes or None for all classes)."""
    short, middle, long = list(OFFSETS)[2:]
    for temporal, name in NAMES.items():
        one, two, three = (Row(temporal, offsets) for offsets in (short, middle, long))
        yield f"{name}: {middle} over {short}", two, one, None
        yield f"{name}: {long} over {middle}", three, two, None
        yield f"{name}, three scenes: {long} over {middle}", three, two, 3
        yield f"{name}, one scene: {long} over {short}", three, one, 1
    for offsets in (short, long):
        yield f"{offsets}: TSM over TSN", Row("tsm", offsets), Row("tsn", offsets), None
    yield "TSM alone: over TSN alone", Row("tsm", "none"), Row("tsn", "none"), None
    yield f"TSM alone, {LONGER_ROW.longer * EPOCHS} epochs: over {EPOCHS}", LONGER_ROW, Row("tsm", "none"), None
    for other in ("mlp", "soft_argmax"):
        yield f"extraction, integrated by conv: conv over {other}", Row(), Row(extraction=other), None
    for other in ("mlp", "fc"):
        yield f"integration, extracted by conv: conv over {other}", Row(), Row(integration=other), None


def answer_table(runs):
    """Markdown: differences between two rows, and whether they are larger than those between seeds."""
    lines = ["| question | difference in points | between the runs |", "|---|---|---|"]
    for question, row, other, scenes in questions():
        figure = (lambda run: run["top1"]) if scenes is None else (lambda run, n=scenes: run["scenes"][n - 1])
        one, two = summary(runs, row, figure), summary(runs, other, figure)
        if one is None or two is None:
            lines.append(f"| {question} | – | |")
            continue
        verdict = "they overlap"
        if min(one[2]) > max(two[2]):
            verdict = "each is above each of the other row"
        elif max(one[2]) < min(two[2]):
            verdict = "each is **below** each of the other row"
        lines.append(f"| {question} | {100 * (one[0] - two[0]):+.1f} | {verdict} |")
    return "\n".join(lines)


def write_page(runs):
    """Puts tables and plots into their places."""
    from keras_stss.bench.tables import write_into

    counts = [sum(run["row"] == name for run in runs) for name in ROWS]
    note = (
        f"{sum(counts)} runs; {min(counts)} to {max(counts)} of each row."
        if len(set(counts)) > 1
        else (f"{sum(counts)} runs, {counts[0]} of each row.")
    )
    for place, text in zip(
        PLACES, (offset_table(runs), f"{part_table(runs)}\n\n{note}", answer_table(runs)), strict=True
    ):
        write_into(PAGE, place, f"{text}\n")
    plot(runs, PAGE.parent / "ablations.svg")
    draw_clips(PAGE.parent / "ablations-clips.jpg")


def plot(runs, path):
    """Top-1 by offset set, by number of scenes, and by extraction and integration; a dot for each run."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "ablations", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.6), layout="constrained", width_ratios=(1.2, 1, 1, 1.2))
    places = np.arange(len(OFFSETS))
    for temporal, colour in (("tsn", "tab:blue"), ("tsm", "tab:orange")):
        rows = [row for row in OFFSET_ROWS if row.temporal == temporal]
        _line(axes[0], places, [summary(runs, row) for row in rows], NAMES[temporal], colour)
    best = [100 * known(Row("tsn", offsets)) for offsets in OFFSETS]
    axes[0].plot(places, best, "k_", markersize=18, label="at best, if frames are apart")
    axes[0].set_title("all classes")
    for axis, temporal in zip(axes[1:3], NAMES, strict=True):
        for number, colour in zip(range(SCENES), ("tab:green", "tab:red", "tab:purple"), strict=True):
            rows = [row for row in OFFSET_ROWS if row.temporal == temporal]
            found = [summary(runs, row, lambda run, n=number: run["scenes"][n]) for row in rows]
            _line(axis, places, found, ("one scene", "two scenes", "three scenes")[number], colour)
        axis.set_title(f"{NAMES[temporal]}, by number of scenes")
    for axis in axes[:3]:
        axis.set_xticks(places, OFFSETS, rotation=20)
    for integration, colour in zip(INTEGRATIONS, ("tab:gray", "tab:olive", "tab:cyan"), strict=True):
        rows = [Row(extraction=extraction, integration=integration) for extraction in EXTRACTIONS]
        _line(axes[3], np.arange(len(EXTRACTIONS)), [summary(runs, row) for row in rows], integration, colour)
    axes[3].set_xticks(range(len(EXTRACTIONS)), EXTRACTIONS)
    axes[3].set_title("TSM, {-3…3}: extraction, integration")
    axes[0].set_ylabel("top-1, %")
    for axis in axes:
        axis.set_ylim(0, 102)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def draw_clips(path):
    """A picture of nine clips, eight sampled frames in a row: three motions over one, two and three scenes."""
    import matplotlib.image

    rows = []
    for scenes in range(SCENES):
        for motion in (0, 6, 8):
            index = scenes * len(long_range.MOTIONS) + motion
            film = long_range.plan_clip(index, np.random.default_rng((9, index)))
            rows.append(
                np.concatenate(
                    [np.pad(frame, ((1, 1), (1, 1), (0, 0))) for frame in long_range.render_film(film)[1::2]], 1
                )
            )
    matplotlib.image.imsave(path, np.concatenate(rows))


def _line(axis, places, found, label, colour):
    """Means with bars of one standard deviation, and a dot for each run."""
    there = [(place, one) for place, one in zip(places, found, strict=True) if one]
    if not there:
        return
    x, means = [place for place, _ in there], [100 * mean for _, (mean, _, _) in there]
    bars = [100 * (deviation or 0) for _, (_, deviation, _) in there]
    axis.errorbar(x, means, bars, color=colour, marker="o", markersize=4, capsize=3, linewidth=1.2, label=label)
    for place, (_, _, values) in there:
        axis.plot([place + 0.08] * len(values), [100 * value for value in values], ".", color=colour, markersize=4)


if __name__ == "__main__":
    main()
