"""The command line: ``keras-stss COMMAND``."""

import argparse
import logging
import os
import re
import sys

from keras_stss.cli import (
    bench,
    convert,
    cost,
    evaluate,
    export,
    predict,
    prepare,
    report,
    robustness,
    train,
    visualize,
)
from keras_stss.cli.codes import INTERRUPTED, MENDABLE

#: The commands, in the order of --help. A module imports what it needs only when its command runs, so that a bad config
#: fails before TensorFlow has loaded.
COMMANDS = (train, prepare, evaluate, robustness, report, predict, visualize, export, convert, cost, bench)


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
    _print_any_name()
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("keras_stss").setLevel(logging.INFO)
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    except Exception as error:
        if not _is_mendable(error):
            raise
        print(f"keras-stss: {error}", file=sys.stderr)
        return MENDABLE


def _print_any_name():
    """File names may hold what the output's encoding has not, or no text at all: their codes are printed then."""
    if getattr(sys.stdout, "errors", None) == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _parse(arguments):
    """The options; files, runs and overrides may stand anywhere on the line, which argparse alone does not allow."""
    parser = _parser()
    options, left = parser.parse_known_args(arguments)
    if listed := next((name for name in ("files", "runs") if hasattr(options, name)), None):
        left, behind = (left[: left.index("--")], left[left.index("--") + 1 :]) if "--" in left else (left, [])
        setattr(options, listed, [*getattr(options, listed), *(item for item in left if item[:1] != "-"), *behind])
        left = [item for item in left if item[:1] == "-"]
    if left and (not hasattr(options, "overrides") or any(not re.match(r"\w+(\.\w+)*=", item) for item in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        options.overrides += left
    return options


def _is_mendable(error):
    """Whether the message says all that the user needs; other errors keep their traceback."""
    names = {cls.__name__ for cls in type(error).__mro__ if cls.__module__.startswith("keras_stss.")}
    mendable = {
        "BenchError",
        "CheckpointError",
        "ClipError",
        "ConfigError",
        "CostError",
        "DataError",
        "ExportError",
        "TrainingDiverged",
        "VisualizeError",
    }
    return bool(names & mendable) or isinstance(error, OSError)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line."""

    def error(self, message):
        self.exit(MENDABLE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser():
    parser = _Parser(prog="keras-stss", description="Motion-aware video recognition for Keras.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
