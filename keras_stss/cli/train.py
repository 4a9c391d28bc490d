"""``keras-stss train`` and ``keras-stss keys``."""

import json
import sys
from pathlib import Path

from keras_stss.cli.codes import INTERRUPTED
from keras_stss.config import list_keys, load_config


def add(commands):
    train = commands.add_parser("train", help="train a model, or go on with a run")
    train.add_argument("--config", required=True, help="YAML file, or a bare name in configs/")
    train.add_argument("overrides", nargs="*", metavar="key.path=value", help="values to use instead of the file's")
    train.add_argument(
        "--dry-run", action="store_true",
        help="two steps of everything (train, evaluate, save, go on, export) in a folder that is removed",
    )  # fmt: skip
    train.add_argument("--json", action="store_true", help="print the last epoch's figures (of every fold) as JSON")
    train.set_defaults(command=_train)

    keys = commands.add_parser("keys", help="list every key of a config file with its default and meaning")
    keys.set_defaults(command=_keys)


def _train(options):
    try:
        return _train_or_go_on(options)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED


def _train_or_go_on(options):
    config = load_config(options.config, options.overrides)
    from keras_stss.training.workers.supervise import LOST, supervise

    code = supervise(config.train)  # one of several workers: here its supervisor ends, and the worker goes on
    if code is not None:
        return code
    from keras_stss.data.annotations import check_there

    check_there(config.data)  # before TensorFlow starts, which takes longer than to see that the data is not there
    from keras_stss.training.workers.distribute import WorkerLost
    from keras_stss.training.workers.preempt import PREEMPTED, Preempted

    name, stream = Path(options.config).stem, sys.stderr if options.json else sys.stdout
    try:
        result = _rehearse(config, name, stream) if options.dry_run else _run(config, name, stream)
    except (Preempted, WorkerLost) as error:
        print(f"keras-stss: {error}", file=sys.stderr)
        return PREEMPTED if isinstance(error, Preempted) else LOST
    if options.json:
        print(json.dumps(result))
    elif options.dry_run:
        print(f"the rehearsal of {name} went through")
    elif isinstance(result, list):
        _print_folds(result)
    else:
        print(
            f"done: validation top-1 {result['val_top1']:.1%} after {result['epoch']} epochs; best.keras is of epoch "
            f"{result['best_epoch']}; everything lies in {result['run']}"
        )


def _run(config, name, stream):
    from keras_stss.training.loop import train

    return train(config, name, stream)


def _rehearse(config, name, stream):
    from keras_stss.export import export_run
    from keras_stss.training.rehearsal import rehearse

    return rehearse(config, name, export_run, stream)


def _print_folds(results):
    print("held out    clips   top-1   (last epoch)")
    for row in results:
        print(f"{row['holdout']:<10} {row['val_clips']:>6} {row['val_top1']:>7.1%}   {row['run']}")
    clips = sum(row["val_clips"] for row in results)
    right = sum(row["val_clips"] * row["val_top1"] for row in results)
    print(f"{'all':<10} {clips:>6} {right / clips:>7.1%}")


def _keys(_):
    for key, default, meaning in list_keys():
        print(f"{key} = {default}" + (f"    # {meaning}" if meaning else ""))
