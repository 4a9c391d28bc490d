"""The named stages of a backbone, and what is inserted after them."""


class Stages:
    """Collects a backbone's stage outputs and puts inserted layers behind them.

    Args:
        names: the backbone's stages, in order.
        insert: {stage: [layers]}, called one after another on the stage's output; whatever takes a tensor and gives one
            of the same shape may stand for a layer. None inserts nothing.

    Attributes:
        outputs: {stage: Keras tensor}, inserted layers included, of the stages finished so far.

    Raises:
        ValueError: for an unknown stage.
    """

    def __init__(self, names, insert=None):
        self.insert = dict(insert or {})
        self.outputs = {}
        check_stages("insert", self.insert, names)

    def finish(self, stage, tensor):
        """Applies what is inserted after a stage, keeps the result, and returns it for the next stage."""
        for layer in self.insert.get(stage, ()):
            tensor = layer(tensor)
        self.outputs[stage] = tensor
        return tensor


def check_stages(argument, chosen, names):
    """Raises ValueError where ``chosen`` holds stages that are not among ``names``."""
    if unknown := sorted(set(chosen) - set(names)):
        raise ValueError(f"{argument} must name stages among {tuple(names)}. Received: {argument}={unknown}")
