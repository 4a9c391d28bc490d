"""The command line: ``keras-stss train | keys | prepare | evaluate | predict | export | convert | cost | bench``."""

import argparse
import json
import logging
import os
import re
import sys
from pathlib import Path

from keras_stss.config import ConfigError, DataConfig, list_keys, load_config, parse_config

#: Exit codes: what the user can mend, and an interrupted command.
MENDABLE = 2
INTERRUPTED = 130


def main(arguments=None):
    """Runs one command.

    Args:
        arguments: list of strings (default: the process's own).

    Returns:
        Exit code: 0, or 2 where the user can mend what is wrong (one clear message on stderr, no traceback).
    """
    # TensorFlow's own start-up notes would bury ours; a user's setting wins.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    options = _parse(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("keras_stss").setLevel(logging.INFO)
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from the last checkpoint" if options.command is _train else ""
        print(f"interrupted{goes_on}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    except Exception as error:
        if not _is_mendable(error):
            raise
        print(f"keras-stss: {error}", file=sys.stderr)
        return MENDABLE


def _parse(arguments):
    """The options; overrides may stand anywhere on the line, which argparse alone does not allow."""
    parser = _parser()
    options, left = parser.parse_known_args(arguments)
    if left and (not hasattr(options, "overrides") or any(not re.match(r"\w+(\.\w+)*=", item) for item in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        options.overrides += left
    return options


def _is_mendable(error):
    """Whether the message says all that the user needs; other errors keep their traceback."""
    names = {cls.__name__ for cls in type(error).__mro__ if cls.__module__.startswith("keras_stss.")}
    mendable = {"BenchError", "ClipError", "ConfigError", "CostError", "DataError", "TrainingDiverged"}
    return bool(names & mendable) or isinstance(error, OSError)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line."""

    def error(self, message):
        self.exit(MENDABLE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser():
    parser = _Parser(prog="keras-stss", description="Motion-aware video recognition for Keras.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a model, or go on with a run")
    train.add_argument("--config", required=True, help="YAML file, or a bare name in configs/")
    train.add_argument("overrides", nargs="*", metavar="key.path=value", help="values to use instead of the file's")
    train.add_argument("--json", action="store_true", help="print the last epoch's figures (of every fold) as JSON")
    train.set_defaults(command=_train)

    keys = commands.add_parser("keys", help="list every key of a config file with its default and meaning")
    keys.set_defaults(command=_keys)

    prepare = commands.add_parser("prepare", help="make or check a data set")
    sets = prepare.add_subparsers(required=True, metavar="DATASET")
    synthetic = sets.add_parser("synthetic", help="write the embedded data set: videos whose class is the motion alone")
    synthetic.add_argument("root", nargs="?", default="data/synthetic", help="folder to write (default: %(default)s)")
    synthetic.add_argument("--train-per-class", type=int, help="training clips a class")
    synthetic.add_argument("--validation-per-class", type=int, help="validation clips a class")
    synthetic.add_argument("--seed", type=int, default=0, help="the same seed gives the same pixels (default: 0)")
    synthetic.add_argument("--json", action="store_true", help="print the summary as JSON")
    synthetic.set_defaults(command=_prepare_synthetic)
    for name in DataConfig.model_fields["format"].annotation.__args__:
        check = sets.add_parser(name, help=f"check a download: data.format={name}")
        check.add_argument("root", help="folder of the data set")
        check.add_argument("overrides", nargs="*", metavar="key.path=value", help="data.… keys, as in a config")
        check.add_argument(
            "--depth", choices=["files", "packets", "frames"], default="packets",
            help="how far to look: is each clip there; its packets and first frame; every frame (default: packets)",
        )  # fmt: skip
        check.add_argument("--samples", type=int, default=12, help="clips with pictures in the report (default: 12)")
        check.add_argument(
            "--out", metavar="DIR", help="folder for report.json, report.html (default: runs/NAME-report)"
        )
        check.add_argument("--json", action="store_true", help="print the report as JSON")
        check.set_defaults(command=_prepare_data_set, format=name)

    pack = sets.add_parser("pack", help="pack a data set into shards that are read faster: data.format=records")
    formats = [name for name in DataConfig.model_fields["format"].annotation.__args__ if name != "records"]
    pack.add_argument("format", choices=formats, metavar="FORMAT", help=f"layout of the data set: {', '.join(formats)}")
    pack.add_argument("root", help="folder of the data set")
    pack.add_argument("folder", help="folder to write; the same command goes on with one that was interrupted")
    pack.add_argument("overrides", nargs="*", metavar="key.path=value", help="data.… keys, as in a config")
    pack.add_argument(
        "--form", choices=["jpeg", "video"], default="jpeg",
        help="JPEG frames (many times faster to decode), or the video files as they are (default: jpeg)",
    )  # fmt: skip
    pack.add_argument("--short-side", type=int, help="jpeg: shrink larger frames to this short side in pixels")
    pack.add_argument("--quality", type=int, default=95, help="jpeg: of frames encoded anew, 1 to 100 (default: 95)")
    pack.add_argument("--shards", type=int, help="number of shards (default: one for every 1000 clips)")
    pack.add_argument("--json", action="store_true", help="print the manifest as JSON")
    pack.set_defaults(command=_prepare_pack)

    evaluate = commands.add_parser(
        "evaluate", help="score a run's best model on its validation clips; writes evaluation.json and scores.npz too"
    )
    evaluate.add_argument("run", help="run directory")
    evaluate.add_argument("overrides", nargs="*", metavar="key.path=value", help="data.… and evaluate.… to change")
    evaluate.add_argument("--json", action="store_true", help="print the figures as JSON")
    evaluate.set_defaults(command=_evaluate)

    predict = commands.add_parser("predict", help="classify video files or folders of frames")
    predict.add_argument("run", help="run directory")
    predict.add_argument("files", nargs="+", metavar="FILE", help="video file, or folder of JPEG frames")
    predict.add_argument("--top", type=int, default=5, help="labels to print (default: 5)")
    predict.add_argument("--json", action="store_true", help="print one JSON line a file")
    predict.set_defaults(command=_predict)

    export = commands.add_parser("export", help="write a SavedModel for TensorFlow Serving")
    export.add_argument("run", help="run directory")
    export.add_argument(
        "folder", help="folder to write; TensorFlow Serving wants its name to be a number: models/motion/1"
    )
    export.add_argument("--force", action="store_true", help="replace the folder where it exists")
    export.add_argument("--json", action="store_true", help="print what was written as JSON")
    export.set_defaults(command=_export)

    convert = commands.add_parser("convert", help="make a .keras file of another code base's weights")
    convert.add_argument(
        "source",
        help="weights of torchvision, timm, TSM, MotionSqueeze, SELFY (.pth, .safetensors), KerasHub (.h5) or I3D",
    )
    convert.add_argument("output", help=".keras file to write; model.pretrained and load_model read it")
    convert.add_argument("--config", help="config whose model is to get the weights (default: the file's own model)")
    convert.add_argument("overrides", nargs="*", metavar="key.path=value", help="values to use instead of the config's")
    convert.add_argument("--classes", type=int, help="classes of the head (default: those of the file or data set)")
    convert.add_argument("--strict", action="store_true", help="refuse weights that do not fit in every part")
    convert.add_argument(
        "--past-first",
        action="store_true",
        help="the file's model shifts the first eighth of the channels from the past (early MotionSqueeze code)",
    )
    convert.add_argument("--json", action="store_true", help="print the report as JSON")
    convert.set_defaults(command=_convert)

    cost = commands.add_parser(
        "cost", help="count a model's parameters and multiply-adds by layer and stage, or those of the papers' models"
    )
    cost.add_argument("--config", help="YAML file, or a bare name in configs/")
    cost.add_argument("overrides", nargs="*", metavar="key.path=value", help="values to use instead of the file's")
    cost.add_argument("--papers", action="store_true", help="the rows of the papers' tables beside their figures")
    cost.add_argument("--frames", type=int, help="frames of the clip (default: data.frames)")
    cost.add_argument("--size", type=int, help="side of a frame in pixels (default: data.crop)")
    cost.add_argument("--classes", type=int, default=174, help="classes of the head (default: %(default)s)")
    cost.add_argument("--json", action="store_true", help="print the figures as JSON")
    cost.add_argument("--markdown", metavar="FILE", help="papers: put the table into its place in a Markdown file, too")
    cost.set_defaults(command=_cost)

    bench = commands.add_parser(
        "bench", help="time the operation, the blocks, the models or the data beside others' on this CPU"
    )
    bench.add_argument("kind", choices=["stss", "block", "model", "data"], help="what to time")
    bench.add_argument("--quick", action="store_true", help="tiny shapes, to see that all runs; figures mean nothing")
    bench.add_argument("--peers", metavar="DIR", help="folder of .venv-peers, .venv-peers-tfa (default: the checkout)")
    bench.add_argument("--clips", type=int, help="model: clips of a training step (default: 2; inference takes one)")
    bench.add_argument("--frames", type=int, help="model: frames a clip (default: 8)")
    bench.add_argument("--crop", type=int, help="model: side of a frame in pixels (default: 224)")
    bench.add_argument("--json", action="store_true", help="print the figures as JSON")
    bench.add_argument("--out", metavar="FILE", help="write the figures as JSON, too")
    bench.add_argument("--markdown", metavar="FILE", help="put the tables into their place in a Markdown file, too")
    bench.set_defaults(command=_bench)
    return parser


# The commands import what they need when they run: a bad config fails before TensorFlow has loaded.


def _train(options):
    config = load_config(options.config, options.overrides)
    from keras_stss.data.annotations import check_there

    check_there(config.data)  # before TensorFlow starts, which takes longer than to see that the data is not there
    from keras_stss.training.loop import train

    result = train(config, Path(options.config).stem, sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(result))
    elif isinstance(result, list):
        _print_folds(result)
    else:
        print(
            f"done: validation top-1 {result['val_top1']:.1%} after {result['epoch']} epochs; best.keras is of epoch "
            f"{result['best_epoch']}; everything lies in {result['run']}"
        )


def _keys(_):
    for key, default, meaning in list_keys():
        print(f"{key} = {default}" + (f"    # {meaning}" if meaning else ""))


def _print_folds(results):
    print("held out    clips   top-1   (last epoch)")
    for row in results:
        print(f"{row['holdout']:<10} {row['val_clips']:>6} {row['val_top1']:>7.1%}   {row['run']}")
    clips = sum(row["val_clips"] for row in results)
    right = sum(row["val_clips"] * row["val_top1"] for row in results)
    print(f"{'all':<10} {clips:>6} {right / clips:>7.1%}")


def _prepare_synthetic(options):
    from keras_stss.data.synthetic import prepare

    chosen = {"train_per_class": options.train_per_class, "validation_per_class": options.validation_per_class}
    try:
        summary = prepare(
            options.root, seed=options.seed, **{key: value for key, value in chosen.items() if value is not None}
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    print(
        json.dumps(summary)
        if options.json
        else f"{summary['train']} training and {summary['validation']} validation clips in {summary['root']}"
    )


def _prepare_pack(options):
    from keras_stss.data.annotations import read_annotations
    from keras_stss.data.pack import pack
    from keras_stss.data.prepare import progress

    data = _data_section(options)
    data_set = read_annotations(data)
    settings = {"short_side": options.short_side, "quality": options.quality, "shards": options.shards}
    source = f"{data.format} from {os.path.abspath(data.root)}"
    with progress(sys.stderr, "packing clips") as advance:
        manifest = pack(
            data_set, options.folder, options.form, **settings, workers=data.workers, source=source, advance=advance
        )
    counts = ", ".join(f"{count} {split}" for split, count in manifest["clips"].items())
    size = sum(shard["bytes"] for shard in manifest["shards"]) / 1e9
    lines = [f"{options.folder}: {counts} clips in {len(manifest['shards'])} shards, {size:.3g} GB"]
    lines += [f"left out: {place}: {reason}" for place, reason in list(manifest["unreadable"].items())[:20]]
    lines += [f"{len(manifest['unreadable'])} clips cannot be read"] if manifest["unreadable"] else []
    lines.append(f"to use it: data: {{format: records, root: {options.folder}}}")
    print(json.dumps(manifest) if options.json else "\n".join(lines))
    return 0


def _check_records(options):
    from keras_stss.data.prepare import progress
    from keras_stss.data.records import check_packed

    with progress(sys.stderr, "checking shards") as advance:
        report = check_packed(options.root, advance)
    lines = [f"{report['shards']} shards, clips: {report['clips']}, unreadable when packed: {report['unreadable']}"]
    lines += [f"damaged: {place}: {reason}" for place, reason in report["damaged"].items()]
    print(json.dumps(report) if options.json else "\n".join(lines))
    return MENDABLE if report["damaged"] else 0


def _data_section(options):
    values = {"format": options.format, "root": options.root}
    if options.format == "clips":
        values["annotations"] = "clips.csv"
    return parse_config({"data": values}, "the command line", options.overrides).data


def _prepare_data_set(options):
    data = _data_section(options)
    from keras_stss.data.annotations import check_there

    check_there(data)
    if data.format == "records":
        return _check_records(options)
    from keras_stss.data.prepare import check_data_set, progress
    from keras_stss.data.report import summary_lines, write_report

    with progress(sys.stderr) as advance:
        report, strips = check_data_set(data, options.depth, samples=options.samples, advance=advance)
    written = write_report(report, strips, options.out or Path("runs", f"{options.format}-report"))
    print(json.dumps(report) if options.json else "\n".join([*summary_lines(report), f"report: {written[1]}"]))
    return 0 if report["is_usable"] else MENDABLE


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


def _predict(options):
    from keras_stss.data.decode import ClipError
    from keras_stss.evaluation.predict import predict
    from keras_stss.models import load_model
    from keras_stss.training.run import read_run

    run, config, labels = read_run(options.run)
    model = load_model(run.folder)
    failed = 0
    for path in options.files:
        try:
            ranking = predict(model, labels, config.data, path)[: max(options.top, 1)]
        except ClipError as error:
            failed += 1
            print(f"{path}: {error}", file=sys.stderr)
            if options.json:
                print(json.dumps({"file": path, "error": str(error)}), flush=True)
            continue
        if options.json:
            top = [{"label": label, "probability": probability} for label, probability in ranking]
            print(json.dumps({"file": path, "top": top}, ensure_ascii=False), flush=True)
        else:
            print(path)
            for label, probability in ranking:
                print(f"  {probability:6.1%}  {label}", flush=True)
    return MENDABLE if failed else 0


def _export(options):
    from keras_stss.export import export_run

    summary = export_run(options.run, options.folder, force=options.force)
    if options.json:
        print(json.dumps(summary))
        return
    print(
        f"SavedModel in {summary['folder']} ({summary['bytes'] / 1e6:.1f} MB, {len(summary['operations'])} kinds of "
        f"stock operations); largest difference to the Keras model {summary['max_difference']:.1e}"
    )


def _convert(options):
    from keras_stss.models.convert import convert

    report = convert(
        options.source, options.output, options.config, options.overrides, options.classes, options.strict,
        options.past_first,
    )  # fmt: skip
    if options.json:
        print(json.dumps(report.as_dict()))
    else:
        print("\n".join([*report.lines(), f"written to {options.output}"]))


def _cost(options):
    if bool(options.config) == options.papers:
        raise ConfigError("cost takes either --config NAME or --papers")
    if options.papers and (options.overrides or options.frames or options.size or options.classes != 174):
        raise ConfigError(
            "the papers' rows say themselves what they count: only --json and --markdown go with --papers"
        )
    if options.markdown and not options.papers:
        raise ConfigError("--markdown goes with --papers")
    config = None if options.papers else load_config(options.config, options.overrides)
    from keras_stss.cost import cost, table

    if options.papers:
        from keras_stss.bench.tables import find_place, write_into
        from keras_stss.cost.papers import compare

        if options.markdown:
            find_place(options.markdown, "cost")  # before a minute of counting
        found = compare()
        if options.markdown:
            write_into(options.markdown, "cost", table.markdown_papers(found))
    else:
        found = cost(config, options.classes, options.frames, options.size)
    render = table.render_papers if options.papers else table.render_model
    print(json.dumps(found) if options.json else render(found))


def _bench(options):
    from keras_stss.bench import bench
    from keras_stss.bench.tables import find_place, render, write_into

    if options.markdown:
        find_place(options.markdown, options.kind)  # before minutes of measuring
    if options.out:
        Path(options.out).touch()
    sizes = {name: getattr(options, name) for name in ("clips", "frames", "crop") if getattr(options, name) is not None}
    result = bench(options.kind, quick=options.quick, peers=options.peers, **sizes)
    text, figures = render(result), json.dumps(result, indent=1)
    if options.out:
        Path(options.out).write_text(figures + "\n", encoding="utf-8")
    if options.markdown:
        write_into(options.markdown, options.kind, text)
    print(figures if options.json else text, end="\n" if options.json else "")


if __name__ == "__main__":
    sys.exit(main())
