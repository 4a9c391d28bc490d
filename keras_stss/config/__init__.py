"""The typed schema of a YAML config file: ``data``, ``model``, ``train``, ``evaluate``.

Imports neither Keras nor TensorFlow, so that a bad file fails at once. Read a file with
:func:`load_config`; everything that is wrong with it comes back in one :class:`ConfigError`.
"""

from keras_stss.config.blocks import ALONE, BLOCKS, InsertConfig
from keras_stss.config.data import DataConfig
from keras_stss.config.files import (
    Config,
    dump_config,
    find_config,
    list_keys,
    load_config,
    parse_config,
    set_key,
)
from keras_stss.config.model import STAGES, ModelConfig
from keras_stss.config.recipe import EvaluateConfig, TrainConfig
from keras_stss.config.section import ConfigError

__all__ = [
    "ALONE",
    "BLOCKS",
    "STAGES",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluateConfig",
    "InsertConfig",
    "ModelConfig",
    "TrainConfig",
    "dump_config",
    "find_config",
    "list_keys",
    "load_config",
    "parse_config",
    "set_key",
]
