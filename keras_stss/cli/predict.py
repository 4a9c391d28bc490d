"""``keras-stss predict``."""

import json
import sys

from keras_stss.cli.codes import MENDABLE


def add(commands):
    predict = commands.add_parser("predict", help="classify video files or folders of frames")
    predict.add_argument("run", help="run directory")
    predict.add_argument("files", nargs="+", metavar="FILE", help="video file, or folder of JPEG frames")
    predict.add_argument("--top", type=int, default=5, help="labels to print (default: 5)")
    predict.add_argument("--json", action="store_true", help="print one JSON line a file")
    predict.set_defaults(command=_predict)


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
