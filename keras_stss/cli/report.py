"""``keras-stss report``."""

import json

from keras_stss.cli.tested import split_overrides
from keras_stss.config import ConfigError


def add(commands):
    report = commands.add_parser(
        "report",
        help="write one HTML page on runs: curves, figures, classes, clips that play, mistakes, cost, config; it needs "
        "no server and no network",
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="run directory")
    report.add_argument("--out", metavar="FILE", help="the page (default: report.html in the first run's folder)")
    report.add_argument(
        "--clips", type=int, default=12, metavar="N", help="clips of a section, 0 for none (default: %(default)s)"
    )
    report.add_argument(
        "--overlays",
        type=int,
        default=4,
        metavar="N",
        help="clips that also show what the first run's network sees (default: %(default)s)",
    )
    report.add_argument("--title", metavar="TEXT", help="of the page (default: the runs' names)")
    report.add_argument("--json", action="store_true", help="print what the page holds as JSON")
    report.set_defaults(command=_report, overrides=[], name="report")
    report.epilog = "Overrides data.…=…, such as data.root=DIR, say where the clips of all runs are now."


def _report(options):
    split_overrides(options)
    for name in ("clips", "overlays"):
        if getattr(options, name) < 0:
            raise ConfigError(f"--{name} must not be negative. Received: {getattr(options, name)}")
    from keras_stss.report.build import write_report

    found = write_report(
        options.runs,
        options.out,
        clips=options.clips,
        overlays=options.overlays,
        title=options.title,
        overrides=options.overrides,
    )
    if options.json:
        print(json.dumps(found))
        return
    clips = found["clips"]
    for place, why in clips["failed"].items():
        print(f"not shown: {place}: {why}")
    for note in found["notes"]:
        print(f"note: {note}")
    for line in found["missing"]:
        print(f"not on the page: {line['what']} of {line['run']}; to make it: {line['command']}")
    print(f"written: {found['page']} ({found['bytes'] / 1e6:.1f} MB, {clips['shown']} clips)")
