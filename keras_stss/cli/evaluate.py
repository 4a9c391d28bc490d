"""``keras-stss evaluate``."""

import json
import logging
import sys

from keras_stss.cli.tested import add_options, open_runs

log = logging.getLogger(__name__)

#: What evaluation.json holds, and --json prints where no protocol is named.
_SHORT = ("top1", "top5", "mean_class", "loss", "clips", "unreadable")


def add(commands):
    evaluate = commands.add_parser(
        "evaluate",
        help="score runs' best models on their validation clips by a test protocol; writes evaluation.json, "
        "evaluation-PROTOCOL.json and scores/PROTOCOL.npz and .csv into each run's folder",
    )
    add_options(evaluate)
    evaluate.add_argument(
        "--protocol",
        metavar="NAME",
        help="how to test, for example 1x1 (the default), 10x1, 10x3 or 2x3-full; an unknown name lists all",
    )
    evaluate.set_defaults(command=_evaluate)


def _evaluate(options):
    from keras_stss.evaluation.protocols import DEFAULT, find_protocol
    from keras_stss.evaluation.tables import figure_lines, first_lines

    name = options.protocol or DEFAULT
    protocol = find_protocol(name)
    runs = open_runs(options, protocol)
    parts = [(tested.name, _scores(tested, name, protocol, options.again)) for tested in runs]
    if len(runs) > 1:
        return _several(runs, parts, name, protocol, options.json)
    figures = _figures(runs[0], parts[0][1], name, protocol)
    try:
        _save(runs[0], parts[0][1], figures)
    finally:  # figures that cannot be saved are told all the same
        if options.json:
            print(json.dumps(figures if options.protocol else {key: figures[key] for key in _SHORT}))
        else:
            print(*first_lines(figures), "", _title(name, protocol), *figure_lines(figures), sep="\n")
    return None


def _several(runs, parts, name, protocol, as_json):
    """Each run alone, all of them together, and each against the first."""
    from keras_stss.evaluation.figures import all_figures, comparisons
    from keras_stss.evaluation.scores import mean_of_models
    from keras_stss.evaluation.tables import several_lines

    compared, together = comparisons(parts), mean_of_models(parts)
    alone = [(run.name, _figures(run, scores, name, protocol)) for run, (_, scores) in zip(runs, parts, strict=True)]
    ensemble = all_figures(together, runs[0].labels)
    try:
        for run, (_, scores), (_, figures) in zip(runs, parts, alone, strict=True):
            _save(run, scores, figures)
    finally:
        if as_json:
            listed = [{"run": run, **figures} for run, figures in alone]
            print(json.dumps({"runs": listed, "ensemble": ensemble, "comparisons": compared}))
        else:
            print(_title(name, protocol), *several_lines(alone, ensemble, compared), sep="\n")
            for run, figures in alone:
                for path, reason in figures["unreadable"].items():
                    print(f"left out of {run}: {path}: {reason}")


def _scores(tested, name, protocol, again):
    scores, is_new = tested.scores(name, protocol, again)
    if not is_new:
        left_out = len(scores.unreadable)
        what = f"{len(scores.clips)} clips" + (f" ({left_out} left out then)" if left_out else "")
        print(f"scores of {what} from {tested.path(name)}; --again computes them anew", file=sys.stderr)
        return scores
    try:
        tested.keep(name, scores)
    except OSError as error:
        log.warning("the scores of %s are not kept: %s", tested.name, error)
    return scores


def _figures(tested, scores, name, protocol):
    from keras_stss.evaluation.figures import all_figures

    head = {"protocol": name, "views": protocol.views.views, "average": protocol.average}
    return head | all_figures(scores, tested.labels)


def _save(tested, scores, figures):
    """Writes figures into the run's folder."""
    from keras_stss.evaluation.protocols import DEFAULT
    from keras_stss.training.saving.files import write_atomically

    folder, name = tested.run.folder, figures["protocol"]
    write_atomically(folder / f"evaluation-{name}.json", json.dumps(figures) + "\n")
    if name == DEFAULT:
        short = {key: figures[key] for key in _SHORT}
        write_atomically(folder / "evaluation.json", json.dumps(short, indent=1) + "\n")
        tested.run.save_scores({"index": scores.index, "label": scores.label, "logits": scores.logits})


def _title(name, protocol):
    views = protocol.views.views
    how = "" if views == 1 else f"; the mean of {views} views' {protocol.average}"
    return f"{name}: {protocol.meaning}{how}"
