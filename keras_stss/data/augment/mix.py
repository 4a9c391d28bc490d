"""Mixup and CutMix for clips: two clips of a batch in one, with a label for each part.

What a clip takes from another is drawn for the clip (:func:`mix_draw`), and the clips of a batch then mix in pairs
(:func:`mix_pairs`): rows 0 and 1, 2 and 3 and so on. So a clip's draw depends on its own seed alone, and a batch that
is cut into parts of even size mixes to the same clips as the whole.
"""

import dataclasses

import tensorflow as tf

from keras_stss.data.augment.color import to_uint8
from keras_stss.data.augment.erase import pasted
from keras_stss.data.augment.windows import parts_of


@dataclasses.dataclass(frozen=True)
class Mix:
    """How clips are mixed.

    Args:
        mixup: alpha of the Beta distribution that a clip's share is drawn from, 0 for no mixup.
        cutmix: the same for the area of the boxes of CutMix. Where both are given, each clip draws one of them with
            even chances.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self):
        if min(self.mixup, self.cutmix) < 0 or not (self.mixup or self.cutmix):
            raise ValueError(
                "mixup and cutmix must not be negative, and one of them above 0. "
                f"Received: mixup={self.mixup}, cutmix={self.cutmix}"
            )


def mix_draw(seed, mix, crop):
    """What a clip keeps of itself.

    Mixup (Zhang et al., ICLR 2018): all pixels and frames with the share λ of a Beta(α, α). CutMix (Yun et al., ICCV
    2019): all frames but for a box of 1 - λ of their area, with the ratio of the frame's sides, around a uniform centre
    and cut off at the edges.

    Args:
        seed: int (2,).
        mix: :class:`Mix`.
        crop: side of the frames in pixels.

    Returns:
        ``{"share": float32 scalar, "box": int32 (4,)}``: the weight of the clip's own pixels, and top, left, bottom and
        right of what comes from the other clip alone. For mixup the box is empty, for CutMix the share is 1.
    """
    seeds = parts_of(seed, 2)
    draws = tf.random.stateless_uniform([3], seeds[0])
    takes_box = draws[0] < (0.5 if mix.mixup and mix.cutmix else float(bool(mix.cutmix)))
    alpha = tf.where(takes_box, tf.constant(mix.cutmix, tf.float64), tf.constant(mix.mixup, tf.float64))
    # Float64: with a small alpha both may be too small for float32.
    gammas = tf.random.stateless_gamma([2], seeds[1], alpha, dtype=tf.float64)
    own = tf.cast(gammas[0] / tf.reduce_sum(gammas), tf.float32)
    half = tf.sqrt(1.0 - own) * (crop / 2)
    bounds = tf.concat([draws[1:] * crop - half, draws[1:] * crop + half], 0)
    box = tf.cast(tf.round(tf.clip_by_value(bounds, 0.0, float(crop))), tf.int32)
    return {"share": tf.where(takes_box, 1.0, own), "box": tf.where(takes_box, box, tf.zeros_like(box))}


def mix_pairs(frames, targets, share, box):
    """Mixes the clips of a batch in pairs; where their number is odd, the last one stays as it is.

    Args:
        frames: uint8 (B, ..., H, W, 3); of a clip that comes in two views, both are mixed alike.
        targets: float (B, K), the labels' distribution, such as one-hot.
        share, box: the draws of :func:`mix_draw`, (B,) and (B, 4): a share below 1, or a box.

    Returns:
        (frames, targets), mixed, of the same shapes and types. The weights of the two labels are the shares of the
        pixels.
    """
    size = tf.shape(frames)[-3:-1]
    count = tf.shape(frames)[0]
    rows = tf.range(count)
    partners = tf.minimum(tf.bitwise.bitwise_xor(rows, 1), count - 1)

    def mixed(row):
        own, other = frames[row], frames[partners[row]]

        def blended():
            return to_uint8(_between(share[row], tf.cast(own, tf.float32), tf.cast(other, tf.float32)))

        return tf.cond(share[row] < 1.0, blended, lambda: pasted(own, other, box[row]))

    # One clip at a time: in float, a whole batch takes gigabytes.
    result = tf.map_fn(mixed, rows, fn_output_signature=tf.TensorSpec(frames.shape[1:], tf.uint8))
    covered = tf.reduce_prod(tf.cast(box[:, 2:] - box[:, :2], tf.float32), 1) / tf.cast(
        tf.reduce_prod(size), tf.float32
    )
    weight = tf.cast(share * (1.0 - covered), targets.dtype)[:, None]  # (B, 1)
    return tf.ensure_shape(result, frames.shape), _between(weight, targets, tf.gather(targets, partners))


def _between(share, own, other):
    return share * own + (1 - share) * other
