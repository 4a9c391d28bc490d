"""Wrong predictions, the surest first."""

import numpy as np

from keras_stss.evaluation.metrics import softmax


def surest_mistakes(scores, labels):
    """Clips whose most probable label is wrong.

    Args:
        scores: ``{"index" (M,), "label" (M,), "logits" (M, K)}``, as :func:`keras_stss.evaluation.evaluate.evaluate`
            gives them.
        labels: class names by index.

    Returns:
        List of (index into the clips, text that names what was taken for what), by falling probability.
    """
    probabilities = softmax(scores["logits"])
    said = np.argmax(probabilities, axis=1)
    sure = probabilities[np.arange(len(said)), said]
    wrong = np.flatnonzero(said != scores["label"])
    return [
        (
            int(scores["index"][row]),
            f"{labels[scores['label'][row]]} — taken for {labels[said[row]]} ({sure[row]:.0%})",
        )
        for row in wrong[np.argsort(-sure[wrong], kind="stable")]
    ]
