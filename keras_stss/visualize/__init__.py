"""What a network sees: motion, self-similarity, and where lies what speaks for a class.

>>> model = keras_stss.load_model("runs/mine")
>>> for found in keras_stss.visualize.motion_maps(model, clip):  # clip: uint8 (T, H, W, 3)
...     picture = keras_stss.visualize.motion_picture(clip, found)
"""

from keras_stss.visualize.cam import ClassMap, grad_cam
from keras_stss.visualize.embedding import embedding_picture, feature_model, principal_components, t_sne
from keras_stss.visualize.look import Look, find_label, look_at
from keras_stss.visualize.motion import (
    ChangeMap,
    MotionMap,
    PointSimilarity,
    change_maps,
    check_point,
    motion_maps,
    self_similarity_at,
)
from keras_stss.visualize.moving import overlay_frames
from keras_stss.visualize.network import VisualizeError
from keras_stss.visualize.pictures import (
    change_picture,
    confidence_picture,
    grad_cam_picture,
    motion_picture,
    similarity_picture,
)

__all__ = [
    "ChangeMap",
    "ClassMap",
    "Look",
    "MotionMap",
    "PointSimilarity",
    "VisualizeError",
    "change_maps",
    "change_picture",
    "check_point",
    "confidence_picture",
    "embedding_picture",
    "feature_model",
    "find_label",
    "grad_cam",
    "grad_cam_picture",
    "look_at",
    "motion_maps",
    "motion_picture",
    "overlay_frames",
    "principal_components",
    "self_similarity_at",
    "similarity_picture",
    "t_sne",
]
