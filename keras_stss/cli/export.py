"""``keras-stss export``."""

import json


def add(commands):
    export = commands.add_parser("export", help="write a SavedModel for TensorFlow Serving")
    export.add_argument("run", help="run directory")
    export.add_argument(
        "folder", help="folder to write; TensorFlow Serving wants its name to be a number: models/motion/1"
    )
    export.add_argument("--force", action="store_true", help="replace the folder where it exists")
    export.add_argument("--json", action="store_true", help="print what was written as JSON")
    export.set_defaults(command=_export)


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
