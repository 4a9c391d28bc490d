"""``keras-stss bench``."""

import json
from pathlib import Path


def add(commands):
    bench = commands.add_parser(
        "bench", help="time the operation, the blocks, the models or the data beside others' on this CPU"
    )
    bench.add_argument("kind", choices=["stss", "block", "model", "data", "train"], help="what to time")
    bench.add_argument("--quick", action="store_true", help="tiny shapes, to see that all runs; figures mean nothing")
    bench.add_argument("--peers", metavar="DIR", help="folder of .venv-peers, .venv-peers-tfa (default: the checkout)")
    bench.add_argument("--clips", type=int, help="model: clips of a training step (default: 2; inference takes one)")
    bench.add_argument("--frames", type=int, help="model: frames a clip (default: 8)")
    bench.add_argument("--crop", type=int, help="model: side of a frame in pixels (default: 224)")
    bench.add_argument("--json", action="store_true", help="print the figures as JSON")
    bench.add_argument("--out", metavar="FILE", help="write the figures as JSON, too")
    bench.add_argument("--markdown", metavar="FILE", help="put the tables into their place in a Markdown file, too")
    bench.set_defaults(command=_bench)


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
