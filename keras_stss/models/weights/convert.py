"""From a weight file of other code to a model file of this library."""

import os
from pathlib import Path

from keras_stss.config import ConfigError, load_config, parse_config
from keras_stss.models.build import build_model
from keras_stss.models.weights.pretrained import inspect, load_pretrained

#: Classes where a file has no head and nobody says how many.
IMAGENET_CLASSES = 1000
#: A config has to name a data set; a model alone has none.
NO_DATA = {"format": "clips", "root": ".", "annotations": "clips.csv"}


def convert(source, output, config=None, overrides=(), classes=None, strict=False, past_first=False):
    """Writes the model of a weight file, or another model with its weights, as a ``.keras`` file.

    :func:`keras_stss.load_model` and ``model.pretrained`` read it.

    Args:
        source: see :func:`keras_stss.models.load_pretrained`.
        output: path of the ``.keras`` file.
        config: path or bare name of a config whose model is to get the weights (default: the file's own model).
        overrides: ``"key.path=value"`` for the config.
        classes: of the model's head (default: 174 for Something-Something, else those of the file's head).
        strict, past_first: see :func:`keras_stss.models.load_pretrained`.

    Returns:
        :class:`keras_stss.models.weights.pretrained.Report`.

    Raises:
        ConfigError: for what the user can mend.
    """
    output = Path(output)
    if output.suffix != ".keras":
        raise ConfigError(f"the output must end in .keras. Received: {output}")
    if not output.parent.is_dir():
        raise ConfigError(f"no folder {output.parent}")
    origin = inspect(source)
    if config is not None:
        config = load_config(config, overrides)
    elif overrides:
        raise ConfigError("without --config the model is the file's own: overrides have nothing to change")
    elif not origin.backbone:
        raise ConfigError(f"{source} is a model of this library already; name a config to put its weights into another")
    else:
        config = parse_config({"data": NO_DATA, "model": origin.model()}, source="convert")
    config = config.model_copy(update={"model": config.model.model_copy(update={"pretrained": None})})
    if classes is None and config.data.format == "clips":
        classes = origin.classes or IMAGENET_CLASSES
    model = build_model(config, classes=classes)
    report = load_pretrained(model, source, strict, past_first)
    unfinished = output.with_name(f"unfinished-{output.name}")
    model.save(unfinished)
    os.replace(unfinished, output)
    return report
