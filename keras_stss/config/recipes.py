"""The recipes that come with the library: their names, their headers, and the tables of docs/recipes.md."""

import re
from fnmatch import fnmatchcase

from keras_stss.config.files import SHIPPED, find_config, load_config

#: The papers as docs/recipes.md calls them, and words that the headers of their recipes have.
PAPERS = (("SELFY", "(SELFY)"), ("MotionSqueeze", "(ECCV 2020)"), ("STM and Twins Training", "(STM)"))
COLUMNS = ("model", "frames", "data set", "table", "epochs and rate", "batch", "starts from", "expected", "command")


def list_recipes(pattern=None):
    """Names of the recipes of the papers' tables, for ``--config``.

    Args:
        pattern: with ``*``, ``?`` and ``[…]`` as in file names; None lists all.

    Returns:
        Sorted list of names such as ``"stm_resnet50_16f_ss_v1_twins"``: model, frames, data set, way of training.
    """
    names = {path.stem for folder in SHIPPED if folder.name == "recipes" for path in folder.glob("*.yaml")}
    return sorted(name for name in names if pattern is None or fnmatchcase(name, pattern))


def read_header(name):
    """The comment that a config begins with.

    Args:
        name: as for ``--config``.

    Returns:
        ``{"Title": …, "Paper": …, "Expected": …, "Command": …}`` and what else there is, in the file's order. Broken
        lines are joined, those of a command without their backslashes.
    """
    parts, label = {"Title": []}, "Title"
    for line in find_config(name).read_text(encoding="utf-8-sig").splitlines():
        if not line.startswith("#"):
            break
        begun = re.fullmatch(r"# ([A-Z]\w+): +(.*)", line)
        label, text = begun.groups() if begun else (label, line[1:])
        parts.setdefault(label, []).append(text.strip().removesuffix("\\").strip())
    return {label: " ".join(texts) for label, texts in parts.items()}


def describe(name):
    """What a recipe is: texts by column of docs/recipes.md."""
    config, header = load_config(name), read_header(name)
    data, train = config.data, config.train
    model, frames, data_set = header["Title"].split(", ", 2)
    command = header["Command"].partition("--config ")[2]
    rate = f"{train.epochs}, {train.learning_rate:g}"
    if train.schedule.kind == "cosine":
        rate += f" along a cosine, {train.schedule.warmup_epochs:g} to warm up"
    else:
        milestones = ", ".join(f"{epoch:g}" for epoch in train.schedule.milestones)
        rate += f" × {train.schedule.gamma:g} after {milestones}"
    return {
        "model": model,
        "frames": frames.removesuffix(" frames") + ("" if data.sampling == "segment" else f" {data.sampling}"),
        "data set": data_set,
        "table": re.search(r"tables? ([\w, ]*?\d\w*)(?: and (?:section|appendix)|\.)", header["Paper"])[1],
        "epochs and rate": rate,
        "batch": str(train.batch_size),
        "starts from": "ImageNet" if "model.pretrained=" in command else "its Kinetics-400 run",
        "expected": header["Expected"].partition(" (")[0],
        "command": f"`{command}`",
    }


def recipe_tables():
    """The tables of docs/recipes.md, one a paper, as Markdown."""
    lines = []
    papers = {name: read_header(name)["Paper"] for name in list_recipes()}
    for paper, words in PAPERS:
        lines += [f"### {paper}", "", _row(COLUMNS), _row(["---"] * len(COLUMNS))]
        lines += [_row(describe(name).values()) for name, text in papers.items() if words in text] + [""]
    return "\n".join(lines)


def _row(cells):
    return f"| {' | '.join(cells)} |"
