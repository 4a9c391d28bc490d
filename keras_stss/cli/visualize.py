"""``keras-stss visualize``."""

import json
import random
import sys
from pathlib import Path

from keras_stss.cli.codes import MENDABLE
from keras_stss.config import ConfigError, load_config


def add(commands):
    visualize = commands.add_parser(
        "visualize",
        help="show what a run's network sees in clips: motion, self-similarity, Grad-CAM, a set's features; writes "
        "pictures, videos and index.html",
    )
    visualize.add_argument("run", help="run directory")
    visualize.add_argument("files", nargs="*", metavar="FILE", help="video file, or folder of JPEG frames")
    visualize.add_argument("--out", metavar="DIR", required=True, help="folder of what is written")
    visualize.add_argument("--clips", type=int, default=0, metavar="N", help="also N of the run's validation clips")
    visualize.add_argument("--class", dest="label", metavar="LABEL", help="Grad-CAM of this class (default: predicted)")
    visualize.add_argument("--stage", metavar="NAME", help="where to look (default: all motion blocks; Grad-CAM: last)")
    visualize.add_argument(
        "--point", metavar="X,Y,T", help="pixel and frame whose self-similarity is shown (default: strongest motion)"
    )
    visualize.add_argument("--member", type=int, metavar="N", help="network of an ensemble, from 0")
    plane = visualize.add_mutually_exclusive_group()
    plane.add_argument("--tsne", action="store_true", help="features of the validation clips in the plane, by t-SNE")
    plane.add_argument("--pca", action="store_true", help="the same by principal components, without scikit-learn")
    visualize.add_argument("--set", metavar="CSV", help="--tsne, --pca: these clips (path, label) instead")
    visualize.add_argument(
        "--most", type=int, default=1000, metavar="N", help="--tsne, --pca: at most so many clips (default: 1000)"
    )
    visualize.add_argument("--perplexity", type=float, metavar="P", help="--tsne: neighbours that count (default: 30)")
    visualize.add_argument("--json", action="store_true", help="print one JSON line a clip")
    visualize.set_defaults(command=_visualize, overrides=[])
    visualize.epilog = "Overrides data.…=…, such as data.root=DIR, say where the run's clips are now."


def _visualize(options):
    options.overrides += [item for item in options.files if _is_override(item)]
    options.files = [item for item in options.files if not _is_override(item)]
    _check(options)
    point = _point(options.point)
    from keras_stss.models import load_model
    from keras_stss.training.saving.run import read_run
    from keras_stss.visualize import page

    run, config, labels = read_run(options.run)
    if options.overrides:
        config = load_config(run.folder / "config.yaml", options.overrides)
    model = load_model(run.folder)
    looking = _looking(model, labels, options, point, config.data)
    sections, failures = [], []
    clips = _clips(options, config.data, failures)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    if options.tsne or options.pca:
        sections += _plane(model, labels, config, options, out, failures)
    for (name, clip, truth), folder in zip(clips, page.folder_names([Path(name).stem for name, _, _ in clips])):
        sections += _one(name, clip, truth, out / folder, config.data, looking, options, failures)
    if clips:
        sections.append(page.how_to_read())
    sections.append(page.failures_section(failures))
    which = "" if options.member is None else f", network {options.member} alone"
    page.write_page(out / "index.html", "What the network sees", f"{options.run}: {model.name}{which}", sections)
    print(json.dumps({"page": str(out / "index.html")}) if options.json else f"written: {out / 'index.html'}")
    return MENDABLE if failures else 0


def _is_override(item):
    return item.startswith("data.") and "=" in item


def _check(options):
    """Raises ConfigError for options that ask for nothing, or do not go together."""
    plane = options.tsne or options.pca
    if not (options.files or options.clips or plane):
        raise ConfigError(
            "name files, or take some of the run's clips by --clips N, or its features by --tsne or --pca"
        )
    if options.clips < 0 or options.most < 1:
        raise ConfigError(f"--clips and --most must be positive. Received: {options.clips}, {options.most}")
    if Path(options.out).is_file():
        raise ConfigError(f"--out names the folder of what is written; {options.out} is a file")
    if options.set and not plane:
        raise ConfigError("--set belongs to --tsne and --pca")
    if options.perplexity is not None and not options.tsne:
        raise ConfigError("--perplexity belongs to --tsne")


def _point(text):
    if text is None:
        return None
    try:
        x, y, t = (float(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(f"--point wants three numbers X,Y,T with commas between. Received: {text}") from None
    return x, y, t


def _looking(model, labels, options, point, data):
    """Function (clip, truth) → :class:`keras_stss.visualize.Look`; what cannot be asked of the model is refused now."""
    import numpy as np

    from keras_stss.visualize import check_point, find_label, look_at
    from keras_stss.visualize.network import network_of

    label = None if options.label is None else find_label(labels, options.label)
    if options.files or options.clips:
        network = network_of(model, options.member)
        if options.stage is not None:
            network.check_stage(options.stage)
        if point is not None:
            check_point(point, network.frames(np.zeros((data.frames, data.crop, data.crop, 3), "uint8")).shape)
    wanted = {"label": label, "stage": options.stage, "point": point, "member": options.member}
    return lambda clip, truth: look_at(model, clip, labels, truth, **wanted)


def _clips(options, data, failures):
    """[(name, clip, its label or None)] of the files, then of the run's own clips."""
    from keras_stss.data.annotations import Clip, DataError, read_annotations

    chosen = [(path, Clip(path, path, 0, "frames" if Path(path).is_dir() else "video"), None) for path in options.files]
    if options.clips:
        try:
            data_set = read_annotations(data)
        except DataError as error:
            if not chosen:
                raise
            _failed("--clips", str(error), options, failures)
            return chosen
        found = _some(data_set.validation, options.clips)
        chosen += [(clip.id, clip, data_set.labels[clip.label]) for clip in found]
    return chosen


def _some(items, most):
    """At most so many, drawn at random but always the same ones: lists are sorted by class, or go round the classes."""
    if len(items) <= most:
        return list(items)
    return [items[place] for place in sorted(random.Random(0).sample(range(len(items)), most))]


def _one(name, clip, truth, folder, data, looking, options, failures):
    """Looks at one clip, writes its files and says so; its section, or none where it cannot be read."""
    from keras_stss.data.decode import ClipError
    from keras_stss.data.pipeline import read_view
    from keras_stss.visualize import page

    try:
        look = looking(read_view(clip, data), truth)
    except ClipError as error:
        _failed(name, str(error), options, failures)
        return []
    files = page.clip_files(look)
    page.write_files(folder, files)
    if options.json:
        (label, probability), wrote = look.ranking[0], [str(folder / file) for file in files]
        line = {"file": name, "label": label, "probability": probability, "truth": truth, "written": wrote}
        print(json.dumps(line, ensure_ascii=False), flush=True)
    else:
        print(f"{name}: {page.headline(look)}; {len(files)} files in {folder}", flush=True)
        if note := page.motion_note(look):
            print(f"  {note}", flush=True)
    return [page.clip_section(name, look, files)]


def _failed(name, reason, options, failures):
    failures.append((name, reason))
    print(f"{name}: {reason}", file=sys.stderr)
    if options.json:
        print(json.dumps({"file": name, "error": reason}, ensure_ascii=False), flush=True)


def _plane(model, labels, config, options, out, failures):
    """Draws a set's features in the plane; its section, or none where that is not possible."""
    from keras_stss.data.annotations import DataError, read_annotations, read_table
    from keras_stss.training.showing.progress import Counter
    from keras_stss.visualize import VisualizeError, embedding

    method = "t-SNE" if options.tsne else "principal components"
    try:
        if options.set:
            clips, names = read_table(options.set, config.data)
        else:
            clips, names = read_annotations(config.data).validation, labels
        chosen = _some(clips, options.most)
        if options.tsne:
            embedding.find_t_sne()
            embedding.check_perplexity(len(chosen), options.perplexity)
        counter = Counter(len(chosen), "read", sys.stderr)
        indices, features, said, unreadable = embedding.set_features(
            model, chosen, config.data, config.evaluate.batch_size, counter
        )
        places, how = _placed(features, options)
    except (DataError, VisualizeError) as error:
        _failed(f"--{'tsne' if options.tsne else 'pca'}", str(error), options, failures)
        return []
    for path, reason in unreadable.items():
        _failed(path, reason, options, failures)
    some = f"{len(indices)} of {len(clips)} clips" if len(indices) < len(clips) else f"all {len(clips)} clips"
    note = f"What the classifier sees of {some} of {options.set or 'the validation set'}, by {method}{how}."
    kept = [chosen[index] for index in indices]
    return [_write_plane(kept, places, names, [labels[each] for each in said], f"Features by {method}", note, out)]


def _placed(features, options):
    """(places (N, 2), what was chosen on the way, in words)"""
    import numpy as np

    from keras_stss.visualize import embedding

    if options.tsne:
        places, perplexity = embedding.t_sne(features, options.perplexity)
        return places, f" with perplexity {perplexity:.3g}"
    places = embedding.principal_components(features)
    return np.pad(places, [(0, 0), (0, 2 - places.shape[1])]), ""


def _write_plane(clips, places, names, said, title, note, out):
    """Writes features.png and features.csv; the section of the page."""
    from keras_stss import pages
    from keras_stss.training.saving.files import replacing
    from keras_stss.visualize import embedding, page

    classes = [clip.label for clip in clips]
    # Of labels that the run does not know, none can be right.
    wrong = [names[index] != answer for index, answer in zip(classes, said)] if set(names) & set(said) else None
    content = pages.picture_bytes(embedding.embedding_picture(places, classes, names, wrong, title))
    page.write_bytes(out / "features.png", content)
    with replacing(out / "features.csv") as unfinished:
        embedding.save_embedding(unfinished, [clip.id for clip in clips], places, classes, names, said)
    return page.embedding_section(title, note, content)
