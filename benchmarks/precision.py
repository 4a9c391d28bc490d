"""How far the loss of a real training strays from float32's: half precision, XLA, accumulation, and all at once.

    python benchmarks/precision.py            # trains what is not there yet, then the table and the plot
    python benchmarks/precision.py --table    # table and plot of the curves that are kept

A small SELFYNet (configs/ablations/long_range.yaml with the offsets -1 and 1) learns the ten classes of one scene, each
run with the same seed: step n of every run has the same clips, drawn alike. How far float32 itself strays when nothing
but the rounding is another one is measured beside it. Each run is a process; one that was killed goes on where it
stopped. The curves are kept in benchmarks/results/precision.json, the table and the plot in docs/.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from ablations import BLOCK, CONFIG, prepare_data

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "precision.json"
PAGE = ROOT / "docs" / "training.md"
PLACE = "precision"
CHANGES = (
    "data.format=something_v2", f"{BLOCK}.temporal_offsets=[-1,1]", "train.epochs=6", "evaluate.every=6",
    "train.strategy=one", "train.board.clips=0", "train.board.mistakes=0", "train.board.motion=0",
)  # fmt: skip
FROZEN = ("train.batch_norm=frozen", "train.epochs=1", "evaluate.every=1", "train.learning_rate=0.002")
HALF, BRAIN = "train.precision=mixed_float16", "train.precision=mixed_bfloat16"
XLA, PARTS = "train.xla=true", "train.accumulate=2"
BEGINNING = 10  # steps in which a difference has had no time to grow
CLOSE = 0.01
WINDOW = 15  # steps that smoothing takes the mean of
END = 25  # steps at the end


@dataclasses.dataclass(frozen=True)
class Trial:
    """A line of the table.

    Args:
        label: for the reader.
        changes: of the config.
        base: name of the trial that it is compared with; the bases themselves have none.
        start: name of the trial whose model it starts from.
        environment: of its process.
    """

    label: str
    changes: tuple = ()
    base: str | None = "float32"
    start: str | None = None
    environment: tuple = ()


TRIALS = {
    "float32": Trial("float32", base=None),
    "float16": Trial("mixed_float16", (HALF,)),
    "bfloat16": Trial("mixed_bfloat16", (BRAIN,)),
    "rounding": Trial("float32, other rounding (without oneDNN)", environment=(("TF_ENABLE_ONEDNN_OPTS", "0"),)),
    "parts": Trial("accumulate=2: normalised over 8 clips, not 16", (PARTS,)),
    "xla": Trial("XLA", (XLA,)),
    "all": Trial("mixed_float16, XLA, accumulate=2", (HALF, XLA, PARTS)),
    "again": Trial("float32, the same again"),
    "seed": Trial("float32, another seed", ("train.seed=1",)),
    "frozen": Trial("frozen: float32", FROZEN, base=None, start="float32"),
    "frozen-parts": Trial("frozen: accumulate=2", (*FROZEN, PARTS), "frozen", "float32"),
    "frozen-all": Trial("frozen: mixed_float16, XLA, accumulate=2", (*FROZEN, HALF, XLA, PARTS), "frozen", "float32"),
    "frozen-bfloat16": Trial("frozen: mixed_bfloat16", (*FROZEN, BRAIN), "frozen", "float32"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "precision", help="folder of the runs")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the data set, made if missing")
    parser.add_argument("--only", default="", help="trials of these names, with commas between")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else list(TRIALS)
    if unknown := [name for name in wanted if name not in TRIALS]:
        parser.error(f"no trial is called {', '.join(unknown)}; there are {', '.join(TRIALS)}")
    failed = [] if options.table else train_all(wanted, options)
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    write_page(result)
    print(table(result["trials"]))
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


# --- runs -------------------------------------------------------------------------------------------------------------


def train_all(wanted, options):
    """Trains what is missing, one after another; returns the names of the trials that failed."""
    prepare_data(options.data)
    options.runs.mkdir(parents=True, exist_ok=True)
    one_scene(options.data / "long_range", options.runs / "lists")
    failed = []
    for name in wanted:
        folder = options.runs / name
        kept = options.runs / f"{name}.json"
        if not kept.exists():
            print(f"{name} …", flush=True)
            if train_one(TRIALS[name], folder, options):
                failed.append(name)
                continue
            kept.write_text(json.dumps(record(folder)) + "\n", encoding="utf-8")
        keep(name, json.loads(kept.read_text(encoding="utf-8")))
    return failed


def one_scene(source, folder):
    """Writes lists of the clips of the classes that show one scene."""
    from keras_stss.data.synthetic import long_range

    folder.mkdir(exist_ok=True)
    chosen = {text: label for label, text in enumerate(long_range.TEMPLATES) if long_range.scenes_of(label) == 1}
    (folder / "labels.json").write_text(json.dumps({text: str(label) for text, label in chosen.items()}))
    for part in ("train", "validation"):
        clips = json.loads((source / f"something-something-v2-{part}.json").read_text(encoding="utf-8"))
        kept = [clip for clip in clips if clip["template"] in chosen]
        (folder / f"{part}.json").write_text(json.dumps(kept, indent=1))


def train_one(trial, folder, options):
    """Trains in a process of its own; returns its exit status."""
    start = [f"model.init={options.runs / trial.start / 'best.keras'}"] if trial.start else []
    lists = [
        f"data.{part}={(options.runs / 'lists' / part).resolve()}.json" for part in ("train", "validation", "labels")
    ]
    places = [f"data.root={options.data / 'long_range'}", *lists, f"train.run={folder}"]
    command = [sys.executable, ROOT / "train.py", "--config", CONFIG]
    with open(f"{folder}.log", "ab") as log:
        return subprocess.run(
            [*command, *CHANGES, *trial.changes, *start, *places],
            stdout=log, stderr=log, env=os.environ | dict(trial.environment),
        ).returncode  # fmt: skip


def record(folder):
    """What a finished run has written down.

    Returns:
        {"losses": by step, "skipped": steps whose gradient was not finite, "val_loss", "val_top1"}
    """
    import tensorflow as tf

    found = {"train/loss": {}, "train/gradient_norm": {}}
    for path in sorted((folder / "tensorboard").iterdir()):
        for written in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(written.numpy())
            for value in event.summary.value:
                if value.tag in found:
                    found[value.tag][event.step] = value.simple_value
    last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {
        "losses": [float(f"{loss:.7g}") for _, loss in sorted(found["train/loss"].items())],
        "skipped": sum(not np.isfinite(norm) for norm in found["train/gradient_norm"].values()),
        "val_loss": last["val_loss"],
        "val_top1": last["val_top1"],
    }


def keep(name, trial):
    """Writes a trial's record beside those of the others."""
    from keras_stss.bench import machine

    known = json.loads(RESULT.read_text(encoding="utf-8"))["trials"] if RESULT.exists() else {}
    known[name] = trial
    trials = {each: known[each] for each in TRIALS if each in known}
    text = json.dumps({"trials": trials, "machine": machine.describe()})
    RESULT.write_text(text.replace('"losses": [', '\n"losses": [') + "\n", encoding="utf-8")


# --- table ------------------------------------------------------------------------------------------------------------


def smooth(losses, window=WINDOW):
    """Means over each ``window`` steps in a row: of (N,), (N - window + 1,)."""
    return np.convolve(losses, np.full(window, 1 / window), "valid")


def strays(losses, base):
    """How far a curve is from another one, as shares of the latter.

    Args:
        losses, base: (N,), of the same clips at each step.

    Returns:
        Dictionary: the largest difference of one of the first ``BEGINNING`` steps; how many steps are ``CLOSE`` before
        the first that is not; the mean and the largest of all steps; the largest of the smoothed curves, and the same
        in nats, not as a share; that of the mean over the last ``END`` steps, which has a sign.
    """
    losses, base = np.asarray(losses), np.asarray(base)
    each = np.abs(losses / base - 1)
    far = np.flatnonzero(each > CLOSE)
    return {
        "beginning": float(each[:BEGINNING].max()),
        "close": int(far[0]) if len(far) else len(each),
        "mean": float(each.mean()),
        "largest": float(each.max()),
        "smoothed": float(np.abs(smooth(losses) / smooth(base) - 1).max()),
        "nats": float(np.abs(smooth(losses) - smooth(base)).max()),
        "end": float(losses[-END:].mean() / base[-END:].mean() - 1),
    }


def table(trials):
    """Markdown: a line for each trial that is there with the one it is compared with."""
    lines = [
        f"| run | first {BEGINNING} steps, at most | steps within {CLOSE:.0%} | a step, mean | a step, at most "
        f"| smoothed, at most | the same in nats | last {END} steps | their loss | validation loss | top-1 "
        "| steps skipped |",
        "|---" * 12 + "|",
    ]
    for name, trial in TRIALS.items():
        if name not in trials or (trial.base and trial.base not in trials):
            continue
        found = trials[name]
        cells = [""] * 7
        if trial.base:
            far = strays(found["losses"], trials[trial.base]["losses"])
            cells = [share(far["beginning"]), str(far["close"]), *(share(far[key]) for key in ("mean", "largest"))]
            cells += [share(far["smoothed"]), f"{far['nats']:.2g}", f"{far['end']:+.1%}"]
            if name == "seed":
                cells[:4] = ["other clips"] * 4
        cells += [f"{np.mean(found['losses'][-END:]):.3f}", f"{found['val_loss']:.3f}", f"{found['val_top1']:.1%}"]
        lines.append(f"| {' | '.join([trial.label, *cells, str(found['skipped'])])} |")
    return "\n".join(lines)


def share(value):
    """Text of a share with two digits that count."""
    return "0" if value == 0 else f"{100 * value:.2g} %" if value < 0.1 else f"{value:.0%}".replace("%", " %")


def write_page(result):
    """Puts table and plot into their places."""
    from keras_stss.bench.tables import write_into

    machine = result["machine"]
    note = f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}; GPU: {machine['gpu'] or 'none'}."
    write_into(PAGE, PLACE, f"{table(result['trials'])}\n\n{note}\n")
    plot(result["trials"], PAGE.parent / "precision.svg")


def plot(trials, path):
    """Smoothed losses, and their differences from the float32 run's, over the steps."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "precision", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, (above, below, frozen) = pyplot.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for number, (name, found) in enumerate(trials.items()):
        trial, losses = TRIALS[name], smooth(found["losses"])
        steps = np.arange(len(losses)) + WINDOW
        if trial.start is None:
            above.plot(steps, losses, f"C{number}", linewidth=1, label=trial.label)
        if trial.base in trials:
            axis = frozen if trial.start else below
            difference = 100 * (losses / smooth(trials[trial.base]["losses"]) - 1)
            axis.plot(steps, difference, f"C{number}", linewidth=1, label=trial.label)
    above.set_title(f"loss, mean over {WINDOW} steps")
    below.set_title("difference from the float32 run, %")
    frozen.set_title("difference, frozen batch normalisation, %")
    for axis in (above, below, frozen):
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.set_visible(bool(axis.get_legend_handles_labels()[0]))
    for axis in (above, frozen):  # the panel between them has the first one's colours, and no room
        axis.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
