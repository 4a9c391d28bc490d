"""``keras-stss convert``."""

import json


def add(commands):
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


def _convert(options):
    from keras_stss.models.weights.convert import convert

    report = convert(
        options.source, options.output, options.config, options.overrides, options.classes, options.strict,
        options.past_first,
    )  # fmt: skip
    if options.json:
        print(json.dumps(report.as_dict()))
    else:
        print("\n".join([*report.lines(), f"written to {options.output}"]))
