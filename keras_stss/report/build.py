"""One HTML page on one or more runs."""

from pathlib import Path

from keras_stss.config import ConfigError
from keras_stss.pages import PLAYING, SORTING, page
from keras_stss.report import classes, results, settings
from keras_stss.report.clips import Clips
from keras_stss.report.look import SCRIPT, STYLE
from keras_stss.report.runs import read_runs
from keras_stss.training.saving.files import replacing

#: Clips of a section, and those of them with a video of what the network sees.
CLIPS, OVERLAYS = 12, 4
_SHOWN = 4


def write_report(folders, out=None, *, clips=CLIPS, overlays=OVERLAYS, title=None, overrides=()):
    """Writes the page.

    Args:
        folders: paths of run directories, whose labels are the same.
        out: path of the page; None for report.html in the first run's folder.
        clips: clips of each of the three sections that show some; 0 for a page without any.
        overlays: clips of all that get a video of what the first run's network sees, too.
        title: None for the names of the runs.
        overrides: ``data.…=…`` texts that change where and how clips are found.

    Returns:
        Dictionary for JSON: ``page`` (path), ``bytes``, ``protocol``, ``runs`` (a list of ``run``, ``epochs``,
        ``protocols`` with their figures, ``parameters``, ``multiply_adds``), ``sections`` (their headings), ``clips``
        (``shown``, and ``failed`` with a reason each), ``missing`` (a list of ``run``, ``what`` and ``command``) and
        ``notes``.

    Raises:
        ConfigError: where a folder is no run directory, where labels differ, and where ``out`` is a folder.
    """
    if out and Path(out).is_dir():
        raise ConfigError(f"--out names the page, a file; {out} is a folder. For example {Path(out, 'report.html')}")
    runs = read_runs(folders, overrides)
    protocol = results.main_protocol(runs)
    shown, counted = Clips(runs, protocol, clips, overlays), settings.costs(runs)
    sections = [
        results.protocols(runs),
        results.curves(runs),
        classes.class_table(runs, protocol),
        classes.confusion(runs, protocol),
        *shown.sections(),
        results.calibration(runs, protocol),
        results.robustness(runs),
        settings.cost_section(runs, counted),
        settings.config_section(runs),
        settings.versions(runs),
        results.missing_section(runs),
    ]
    sections = [each for each in sections if each is not None]
    head = results.overview(runs, protocol)
    text = page(title or _title(runs), sections, head, SORTING + PLAYING + SCRIPT, STYLE)
    path = Path(out) if out else runs[0].folder / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return {
        "page": str(path),
        "bytes": path.stat().st_size,
        "protocol": protocol,
        "runs": [_summary(run, counted.get(run.name, {})) for run in runs],
        "sections": [each.heading for each in sections],
        "clips": {"shown": shown.shown, "failed": shown.failed},
        "missing": [dict(zip(("run", "what", "command"), line, strict=True)) for line in results.missing(runs)],
        "notes": [note for run in runs for note in run.notes],
    }


def _title(runs):
    names = [run.name for run in runs]
    return ", ".join(names) if len(names) <= _SHOWN else f"{len(names)} runs: {', '.join(names[: _SHOWN - 1])}, …"


def _summary(run, counted):
    figures = {
        name: {key: found[key] for key in ("top1", "top5", "mean_class", "loss", "clips")}
        for name, found in run.evaluations.items()
    }
    cost = {key: counted.get(key) for key in ("parameters", "multiply_adds")}
    return {"run": str(run.folder), "epochs": run.rows[-1]["epoch"] if run.rows else 0, "protocols": figures, **cost}
