"""What the models of the README's table see on the embedded data set: python benchmarks/motion_table.py RUN….

For each evaluated run (keras-stss evaluate RUN): top-1 over all classes, and the forced choice between a class and the
one that is its film run backwards, where chance is 50 % and single frames cannot help.
"""

import json
import sys
from pathlib import Path

import numpy as np

from keras_stss.data.synthetic import REVERSED


def order_accuracy(labels, logits):
    """Share of clips of reversible classes that score their class above its reversal.

    Args:
        labels: (N,). logits: (N, K).
    """
    clips = np.flatnonzero(np.isin(labels, list(REVERSED)))
    backwards = np.array([REVERSED[label] for label in labels[clips]])
    return float(np.mean(logits[clips, labels[clips]] > logits[clips, backwards]))


def main(runs):
    print("| run | top-1 | order (chance 50 %) |\n|---|---|---|")
    for run in map(Path, runs):
        if not (run / "scores.npz").is_file():
            sys.exit(f"{run} has no scores yet: keras-stss evaluate {run}")
        with np.load(run / "scores.npz") as scores:
            labels, logits = scores["label"], scores["logits"]
        figures = json.loads((run / "evaluation.json").read_text())
        print(f"| {run.name} | {figures['top1']:.1%} | {order_accuracy(labels, logits):.1%} |")


if __name__ == "__main__":
    main(sys.argv[1:])
