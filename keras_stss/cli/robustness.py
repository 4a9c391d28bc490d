"""``keras-stss robustness``."""

import json
import sys
from pathlib import Path

from keras_stss.cli.tested import add_options, open_runs
from keras_stss.config import ConfigError


def add(commands):
    robustness = commands.add_parser(
        "robustness",
        help="score runs on damaged validation clips; writes robustness.json, .csv and .png, and goes on where it "
        "was stopped",
    )
    add_options(robustness)
    robustness.add_argument(
        "--corruptions",
        metavar="NAMES",
        default="all",
        help="names or groups (selfy, imagenet-c, video, all), with commas between; an unknown name lists all",
    )
    robustness.add_argument("--severities", metavar="NUMBERS", help="such as 1,3,5 (default: all that there are)")
    robustness.add_argument("--protocol", metavar="NAME", help="how to test (default: 1x1)")
    robustness.add_argument("--seed", type=int, default=0, help="of the noise and of what else is drawn (default: 0)")
    robustness.add_argument("--out", metavar="DIR", help="folder of the files (default: the first run's)")
    robustness.set_defaults(command=_robustness)


def _robustness(options):
    from keras_stss.data.corruptions import CORRUPTIONS, find_corruptions
    from keras_stss.evaluation.protocols import DEFAULT, find_protocol
    from keras_stss.evaluation.robustness import robustness_lines, with_means

    name = options.protocol or DEFAULT
    protocol = find_protocol(name)
    wanted = _severities(options.severities)
    levels = {
        each: [number for number in range(1, len(CORRUPTIONS[each].levels) + 1) if not wanted or number in wanted]
        for each in find_corruptions([text.strip() for text in options.corruptions.split(",")])
    }
    levels = {each: severities for each, severities in levels.items() if severities}
    if not levels:
        raise ConfigError(f"no corruption has a severity of {options.severities}")
    if options.seed < 0:
        raise ConfigError(f"--seed must not be negative. Received: {options.seed}")
    opened = open_runs(options, protocol)
    folder = Path(options.out or opened[0].run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    runs = [with_means(_one_run(each, name, protocol, levels, options)) for each in opened]
    result = {"protocol": name, "seed": options.seed, "runs": runs}
    _write(folder, result)
    if options.json:
        print(json.dumps(result))
    else:
        print(*robustness_lines(runs), "", f"written: {folder / 'robustness'}.json, .csv and .png", sep="\n")


def _severities(text):
    try:
        found = {int(each) for each in text.split(",")} if text else set()
    except ValueError:
        found = {0}
    if any(number < 1 for number in found):
        raise ConfigError(f"--severities wants whole numbers from 1 with commas between. Received: {text}")
    return found


def _one_run(opened, name, protocol, levels, options):
    """Figures of a run on clean clips and on those of each corruption and severity."""
    from keras_stss.data.corruptions import CORRUPTIONS, Corrupted
    from keras_stss.evaluation.robustness import figures_of
    from keras_stss.evaluation.scores import clip_names

    count, names = len(opened.labels), clip_names(opened.clips)
    scores = _kept(opened, name, protocol, options.again)
    clean, left_out = figures_of(scores, count), scores.unreadable
    print(f"{opened.name}, {clean['clips']} clips as they are: top-1 {clean['top1']:.1%}", file=sys.stderr)
    found = {}
    for corruption, severities in levels.items():
        found[corruption] = []
        for severity in severities:
            how = [corruption, severity, CORRUPTIONS[corruption].levels[severity - 1], options.seed]
            change = Corrupted(corruption, severity, names, options.seed)
            kept = f"robustness/{name}-{corruption}-{severity}"
            scores = _kept(opened, kept, protocol, options.again, change, json.loads(json.dumps(how)), left_out)
            figures = figures_of(scores, count, clean)
            found[corruption].append({"severity": severity, **figures})
            print(f"{opened.name}, {corruption} {severity}: top-1 {figures['top1']:.1%}", file=sys.stderr)
    return {"run": opened.name, "clean": clean, "corruptions": found}


def _kept(opened, name, *how):
    scores, is_new = opened.scores(name, *how)
    if is_new:
        opened.keep(name, scores)
    return scores


def _write(folder, result):
    from keras_stss.evaluation.robustness import draw_robustness, save_robustness_csv
    from keras_stss.training.saving.files import replacing, write_atomically

    write_atomically(folder / "robustness.json", json.dumps(result, indent=1) + "\n")
    with replacing(folder / "robustness.csv") as unfinished:
        save_robustness_csv(unfinished, result["runs"])
    with replacing(folder / "robustness.png") as unfinished:
        draw_robustness(unfinished, result["runs"])
