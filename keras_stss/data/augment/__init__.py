"""Augmentation of whole clips: every draw holds for all frames of a clip.

Stateless TensorFlow operations: a result is a function of pixels and seed, eagerly and in ``tf.data``, whatever the
number of threads.
"""

from keras_stss.data.augment.color import color_jitter, random_grayscale
from keras_stss.data.augment.erase import random_erasing
from keras_stss.data.augment.mix import Mix, mix_draw, mix_pairs
from keras_stss.data.augment.rand_augment import rand_augment
from keras_stss.data.augment.training import finish_view, training_view, training_window
from keras_stss.data.augment.views import center_view, crop_views, cut, fit, may_flip, random_view
from keras_stss.data.augment.windows import center_window, fold

__all__ = [
    "Mix",
    "center_view",
    "center_window",
    "color_jitter",
    "crop_views",
    "cut",
    "finish_view",
    "fit",
    "fold",
    "may_flip",
    "mix_draw",
    "mix_pairs",
    "rand_augment",
    "random_erasing",
    "random_grayscale",
    "random_view",
    "training_view",
    "training_window",
]
