"""``keras-stss export``."""

import json
import sys

from keras_stss.cli.codes import MENDABLE


def add(commands):
    export = commands.add_parser(
        "export", help="write a SavedModel for TensorFlow Serving; with --format also LiteRT, ONNX and OpenVINO"
    )
    export.add_argument("run", help="run directory")
    export.add_argument(
        "folder",
        help="folder to write; TensorFlow Serving wants its name to be a number: models/motion/1. With --format it "
        "holds the files of all formats",
    )
    export.add_argument(
        "--format",
        metavar="LIST",
        help="saved_model, litert, litert-int8, onnx, openvino, with commas between, or all (that are installed)",
    )
    export.add_argument(
        "--native",
        action="store_true",
        help="the SavedModel keeps the native operations; their library lies in its assets.extra",
    )
    export.add_argument(
        "--batch", type=int, metavar="N", help="clips at a time, of the formats beside SavedModel (default: 1)"
    )
    export.add_argument("--force", action="store_true", help="replace the folder where it exists")
    export.add_argument("--json", action="store_true", help="print what was written as JSON")
    export.set_defaults(command=_export)


def _export(options):
    if options.format is not None:
        return _doors(options)
    from keras_stss.config import ConfigError
    from keras_stss.export import export_run

    if options.batch is not None:
        raise ConfigError("--batch goes with --format: a SavedModel takes any batch")
    summary = export_run(options.run, options.folder, force=options.force, native=options.native)
    if options.json:
        print(json.dumps(summary))
        return None
    kinds = f"{len(summary['operations'])} kinds of " + ("operations" if options.native else "stock operations")
    print(
        f"SavedModel in {summary['folder']} ({summary['bytes'] / 1e6:.1f} MB, {kinds}); "
        f"largest difference to the Keras model {summary['max_difference']:.1e}"
    )
    if summary["library"]:
        print(f"load before it: {summary['library']}")
    return None


def _doors(options):
    from keras_stss.export import FORMATS, export_doors
    from keras_stss.export.doors import lacking

    formats = [name.strip() for name in options.format.split(",")]
    batch = 1 if options.batch is None else options.batch
    report = export_doors(options.run, options.folder, formats, options.force, options.native, batch)
    if formats == ["all"]:
        for name in FORMATS:
            if reason := lacking(name):
                print(f"left out: {name} {reason}", file=sys.stderr)
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print(*_table(report), sep="\n")
    refused = [row for row in report["doors"] if row["refused"]]
    for row in refused:
        print(f"refused: {row['format']}: {row['refused']}", file=sys.stderr)
    if refused:
        written = [row["file"] for row in report["doors"] if row["bytes"] is not None and not row["refused"]]
        print(f"written all the same: {', '.join(written)}", file=sys.stderr)
    return MENDABLE if refused else None


def _table(report):
    clips = f"{report['clips']} clips, {report['validation_clips']} of them of the validation set"
    shape = (report["batch"], report["frames"], report["crop"], report["crop"], 3)
    yield f"{report['folder']}: frames {shape}"
    yield f"compared on {clips}; speed on {report['threads']} CPU threads"
    lines = [("format", "file", "MB", "largest difference", "same class", "ms", "x Keras")]
    lines.append(("keras model", "", "", "", "", f"{report['keras_ms']:.1f}", "1.00"))
    for row in report["doors"]:
        if row["refused"]:
            lines.append((row["format"], "refused", "", "", "", "", ""))
            continue
        megabytes = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}"
        figures = (f"{row['max_difference']:.1e}", f"{row['same_class']:.0%}", f"{row['ms']:.1f}")
        lines.append((row["format"], row["file"], megabytes, *figures, f"{row['times_keras']:.2f}"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        texts = (
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths))
        )
        yield "  ".join(texts).rstrip()
