"""The embedded data sets: classes that only motion can tell apart, drawn and written by this package.

`motions` has the first set, twelve motions of one thing; `long_range` the harder one, in which what belongs together
lies some frames apart; `write` lays either out as Something-Something V2.
"""

from keras_stss.data.synthetic.motions import (
    REVERSED,
    TEMPLATES,
    Scene,
    plain_label,
    plan_clip,
    render_clip,
    render_scene,
    template_index,
)
from keras_stss.data.synthetic.things import Thing
from keras_stss.data.synthetic.write import FPS, VARIANTS, encode_webm, prepare

__all__ = [
    "FPS",
    "REVERSED",
    "TEMPLATES",
    "VARIANTS",
    "Scene",
    "Thing",
    "encode_webm",
    "plain_label",
    "plan_clip",
    "prepare",
    "render_clip",
    "render_scene",
    "template_index",
]
