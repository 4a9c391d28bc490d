"""A set's features in the plane."""

import csv

import keras
import matplotlib
import numpy as np
from matplotlib.lines import Line2D

from keras_stss.evaluation.evaluate import Scorer
from keras_stss.training.showing import drawing
from keras_stss.visualize.network import VisualizeError

#: Features are reduced to so many numbers before t-SNE, as van der Maaten and Hinton do.
COMPONENTS = 50
#: t-SNE's usual perplexity.
PERPLEXITY = 30.0
#: Classes with colours of their own; the others, with fewer clips, are grey.
COLORED = 18
#: Up to so many clips t-SNE runs on one thread.
FEW = 1000
_LEAST = 4


def feature_model(model):
    """The model from frames to what its classifier sees: (B, C) features, the mean over places and frames.

    Raises:
        VisualizeError: for a model whose last layer is no ``logits``: an ensemble, or none of this project.
    """
    layer = model.get_layer("logits") if "logits" in [each.name for each in model.layers] else None
    if not isinstance(layer, keras.layers.Dense):
        raise VisualizeError(
            "the model has no features of its own: it is an ensemble, whose networks have each theirs, or none of this "
            "project's models"
        )
    return keras.Model(model.input, layer.input)


def set_features(model, clips, data, batch_size, progress=None):
    """What the classifier sees of each clip, as in testing, and what it says.

    Args:
        model: as of :func:`feature_model`.
        clips: list of :class:`keras_stss.data.annotations.Clip`.
        data: :class:`keras_stss.config.DataConfig` of the run.
        batch_size: clips at a time.
        progress: see :meth:`keras_stss.evaluation.evaluate.Scorer.score`.

    Returns:
        (indices into clips (M,), features (M, C), indices of the predicted labels (M,), {path: reason} of clips that
        cannot be read)

    Raises:
        DataError: where no clip can be read. VisualizeError: where features are no numbers.
    """
    scorer = Scorer(feature_model(model))
    lenient = data.model_copy(update={"max_unreadable": 1.0})
    indices, features, unreadable = scorer.score(clips, lenient, batch_size, progress)
    if no_numbers := int(np.count_nonzero(~np.isfinite(features).all(axis=1))):
        raise VisualizeError(f"the model's features of {no_numbers} of {len(features)} clips are no numbers")
    said = np.argmax(np.asarray(model.get_layer("logits")(features)), axis=1)
    return indices, features, said, unreadable


def principal_components(features, count=2):
    """The features along the directions in which they differ most: (N, C) → (N, count), or fewer where C or N is less.

    The sign of each direction is such that its largest weight is positive, so that equal features give equal numbers.
    """
    centered = np.asarray(features, "float64") - np.mean(features, axis=0, dtype="float64")
    _, _, directions = np.linalg.svd(centered, full_matrices=False)
    directions = directions[:count]
    largest = np.abs(directions).argmax(1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    return centered @ (directions * np.where(signs == 0, 1, signs)[:, None]).T


def t_sne(features, perplexity=None, seed=0):
    """t-SNE of features (van der Maaten and Hinton, 2008), by scikit-learn.

    Args:
        features: (N, C).
        perplexity: about how many neighbours of each clip count, from 1 and below N; None for 30, or a third of the
            others where there are less than 91 clips.
        seed: of the optimisation. It starts from the principal components.

    Returns:
        (places (N, 2), the perplexity)

    Raises:
        VisualizeError: without scikit-learn, for fewer than 4 clips, and for a perplexity that cannot be.
    """
    make, limited = find_t_sne()
    features = np.asarray(features, "float32")
    perplexity = check_perplexity(len(features), perplexity)
    reduced = principal_components(features, COMPONENTS).astype("float32")
    start = reduced[:, :2] if reduced.shape[1] > 1 else np.pad(reduced, [(0, 0), (0, 1)])
    # The scale that the optimisation expects; features that are all the same have none.
    start = start / max(float(start[:, 0].std()), 1e-12) * 1e-4
    # Threads with little to do wait by running: on a busy machine minutes, for what one does in seconds.
    with limited(1 if len(features) <= FEW else None):
        found = make(perplexity=perplexity, init=start, learning_rate="auto", random_state=seed).fit_transform(reduced)
    return found, perplexity


def find_t_sne():
    """(scikit-learn's TSNE, threadpoolctl's limit that it brings along); VisualizeError without scikit-learn."""
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise VisualizeError(
            "t-SNE needs scikit-learn: pip install 'keras-stss[visualize]', or take principal components (--pca)"
        ) from None
    return TSNE, threadpool_limits


def check_perplexity(clips, perplexity=None):
    """The perplexity for so many clips; raises VisualizeError where there is none."""
    if clips < _LEAST:
        raise VisualizeError(f"t-SNE needs at least {_LEAST} clips. There are: {clips}")
    if perplexity is None:
        return float(min(PERPLEXITY, max((clips - 1) / 3, 1.0)))
    if not 1 <= perplexity < clips:
        raise VisualizeError(
            f"the perplexity must be from 1 and below the number of clips, {clips}. Received: {perplexity:g}"
        )
    return float(perplexity)


def embedding_picture(places, classes, labels, wrong, title):
    """The clips as points in the colour of their class; those that the model takes for another class are crosses.

    Args:
        places: (N, 2).
        classes: N indices into labels.
        labels: class names.
        wrong: N booleans, or None where that is not known.
        title: above.

    Returns:
        uint8 picture. Beyond 18 classes, those with the most clips have colours, the others are grey.
    """
    classes, wrong = np.asarray(classes), np.zeros(len(places), bool) if wrong is None else np.asarray(wrong)
    counts = np.bincount(classes, minlength=len(labels))
    order = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    colored = sorted(order[:COLORED])
    drawn = drawing.figure(1000, max(560, 60 + 21 * (len(colored) + 3)))
    axes = drawn.add_axes([0.02, 0.03, 0.60, 0.90])
    rest = ~np.isin(classes, colored)
    for mask, marker in ((~wrong, "o"), (wrong, "x")):
        _points(axes, places[mask & rest], "#b8bec4", marker)
        for number, index in enumerate(colored):
            _points(axes, places[mask & (classes == index)], _color(number, len(colored)), marker)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    axes.spines[:].set_color("#c9ced3")
    # Equal steps are equally long both ways: distances are what the picture is about.
    axes.set_aspect("equal", adjustable="datalim")
    _legend(axes, [(_color(number, len(colored)), labels[index]) for number, index in enumerate(colored)], rest, wrong)
    return drawing.pixels(drawn)


def save_embedding(path, clips, places, classes, labels, said):
    """Writes a CSV file: clip, label, the label that the model gives, and the place in the plane."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "label", "predicted", "x", "y"])
        for clip, index, answer, (x, y) in zip(clips, classes, said, places):
            writer.writerow([clip, labels[index], answer, f"{x:.6g}", f"{y:.6g}"])


def _points(axes, places, color, marker):
    # Crosses are lines, discs have a white rim.
    options = {"linewidths": 1.4} if marker == "x" else {"edgecolors": "white", "linewidths": 0.5}
    axes.scatter(places[:, 0], places[:, 1], s=34, c=[color] * len(places), marker=marker, **options)


def _color(number, count):
    # Of the twenty, two are as grey as the other classes.
    return (
        matplotlib.colormaps["tab10"](number)
        if count <= 10
        else matplotlib.colormaps["tab20"](number + 2 * (number > 13))
    )


def _legend(axes, named, rest, wrong):
    def entry(color, text, marker="o"):
        return Line2D([], [], color=color, marker=marker, linestyle="", label=drawing.shortened(text, 350))

    entries = [entry(color, text) for color, text in named]
    entries += [entry("#b8bec4", "other classes")] if rest.any() else []
    entries += [entry("#404850", "taken for another class", "x")] if wrong.any() else []
    legend = axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
