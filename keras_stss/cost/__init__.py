"""What a model costs: parameters and multiply-adds, counted from its graph. Behind ``keras-stss cost``."""

from keras_stss.cost.build import build_empty
from keras_stss.cost.count import NOT_COUNTED, CostError, Row, count
from keras_stss.cost.table import totals

__all__ = ["NOT_COUNTED", "CostError", "Row", "cost", "count"]


def cost(config, classes=174, frames=None, size=None):
    """Counts the model of a config. Weights that it names are not read.

    Args:
        config: :class:`keras_stss.config.Config`.
        classes: of the head; Something-Something's by default.
        frames, size: of the clip, by default as in the config; size is one number or (height, width).

    Returns:
        Dictionary that JSON can hold: ``model``, ``frames``, ``height``, ``width``, ``parameters``, ``multiply_adds``,
        ``stages`` and ``layers`` (lists of dictionaries; see :func:`count`).

    Raises:
        CostError: see :func:`count`, and for sizes below 1.
    """
    frames = config.data.frames if frames is None else frames
    size = config.data.crop if size is None else size
    height, width = (size, size) if isinstance(size, int) else size
    if min(classes, frames, height, width) < 1:
        raise CostError(
            f"classes and sizes must be positive. Received: classes={classes}, frames={frames}, size={size}"
        )
    model = build_empty(config, classes)
    rows = count(model, frames, (height, width))
    clip = {"model": model.name, "frames": frames, "height": height, "width": width}
    return {**clip, **totals(rows), "layers": [row._asdict() for row in rows]}
