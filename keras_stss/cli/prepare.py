"""``keras-stss prepare``: make, check or pack a data set."""

import json
import sys
from pathlib import Path

from keras_stss.cli.codes import MENDABLE
from keras_stss.config import ConfigError, DataConfig, parse_config


def add(commands):
    prepare = commands.add_parser("prepare", help="make or check a data set")
    sets = prepare.add_subparsers(required=True, metavar="DATASET")
    synthetic = sets.add_parser("synthetic", help="write the embedded data set: videos whose class is the motion alone")
    synthetic.add_argument("root", nargs="?", help="folder to write (default: data/synthetic, data/long_range)")
    synthetic.add_argument(
        "--variant", choices=["motion", "long_range"], default="motion",
        help="motion: twelve motions of one thing; long_range: 30 classes of films that are cut, which only frames up "
        "to three sampled ones apart tell apart (default: %(default)s)",
    )  # fmt: skip
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
    pack.add_argument(
        "--short-side",
        type=int,
        help="shrink larger frames to this short side in pixels (video: encodes clips anew)",
    )
    pack.add_argument("--quality", type=int, default=95, help="jpeg: of frames encoded anew, 1 to 100 (default: 95)")
    pack.add_argument("--shards", type=int, help="number of shards (default: one for every 1000 clips)")
    pack.add_argument("--json", action="store_true", help="print the manifest as JSON")
    pack.set_defaults(command=_prepare_pack)


def _prepare_synthetic(options):
    from keras_stss.data.synthetic import prepare

    root = options.root or {"motion": "data/synthetic", "long_range": "data/long_range"}[options.variant]
    try:
        summary = prepare(
            root,
            variant=options.variant,
            train_per_class=options.train_per_class,
            validation_per_class=options.validation_per_class,
            seed=options.seed,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    print(
        json.dumps(summary)
        if options.json
        else f"{summary['train']} training and {summary['validation']} validation clips in {summary['root']}"
    )


def _prepare_data_set(options):
    if options.samples < 0:
        raise ConfigError(f"--samples must not be negative. Received: {options.samples}")
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


def _check_records(options):
    from keras_stss.data.prepare import progress
    from keras_stss.data.records import check_packed

    with progress(sys.stderr, "checking shards") as advance:
        report = check_packed(options.root, advance)
    lines = [f"{report['shards']} shards, clips: {report['clips']}, unreadable when packed: {report['unreadable']}"]
    lines += [f"damaged: {place}: {reason}" for place, reason in report["damaged"].items()]
    if report["damaged"]:
        lines.append("to mend it: delete the damaged files and pack again: the same command writes only those")
    print(json.dumps(report) if options.json else "\n".join(lines))
    return MENDABLE if report["damaged"] else 0


def _prepare_pack(options):
    from keras_stss.data.annotations import read_annotations, storage
    from keras_stss.data.pack import pack
    from keras_stss.data.prepare import progress

    data = _data_section(options)
    data_set = read_annotations(data)
    settings = {"short_side": options.short_side, "quality": options.quality, "shards": options.shards}
    source = f"{data.format} from {storage.absolute(data.root)}"
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


def _data_section(options):
    values = {"format": options.format, "root": options.root}
    if options.format == "clips":
        values["annotations"] = "clips.csv"
    return parse_config({"data": values}, "the command line", options.overrides).data
