"""``keras-stss evaluate``."""

import json
import sys

from keras_stss.config import ConfigError, load_config


def add(commands):
    evaluate = commands.add_parser(
        "evaluate", help="score a run's best model on its validation clips; writes evaluation.json and scores.npz too"
    )
    evaluate.add_argument("run", help="run directory")
    evaluate.add_argument("overrides", nargs="*", metavar="key.path=value", help="data.… and evaluate.… to change")
    evaluate.add_argument("--json", action="store_true", help="print the figures as JSON")
    evaluate.set_defaults(command=_evaluate)


def _evaluate(options):
    from keras_stss.data.annotations import DataError, read_annotations
    from keras_stss.evaluation.evaluate import Scorer, evaluate
    from keras_stss.models import load_model
    from keras_stss.training.progress import Counter
    from keras_stss.training.run import read_run, write_atomically

    run, config, labels = read_run(options.run)
    if bad := [item for item in options.overrides if not item.startswith(("data.", "evaluate."))]:
        raise ConfigError(f"evaluate changes only data.… and evaluate.… keys. Received: {', '.join(bad)}")
    if options.overrides:
        config = load_config(run.folder / "config.yaml", options.overrides)
    data_set = read_annotations(config.data)
    if data_set.labels != labels:
        raise DataError(
            f"the data set's {len(data_set.labels)} labels are not those that the run was trained on ({len(labels)})"
        )
    scorer = Scorer(load_model(run.folder))
    counter = Counter(len(data_set.validation), "evaluated", sys.stderr)
    figures, scores = evaluate(scorer, data_set.validation, labels, config.data, config.evaluate.batch_size, counter)
    write_atomically(run.folder / "evaluation.json", json.dumps(figures, indent=1) + "\n")
    run.save_scores(scores)
    if options.json:
        print(json.dumps(figures))
        return
    print(
        f"top-1 {figures['top1']:.1%}, top-5 {figures['top5']:.1%}, mean class accuracy {figures['mean_class']:.1%}, "
        f"loss {figures['loss']:.3f} on {figures['clips']} clips"
    )
    for path, reason in figures["unreadable"].items():
        print(f"left out: {path}: {reason}")
