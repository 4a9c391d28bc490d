"""What of a model can be looked at: its stages and blocks, or those of one network of an ensemble."""

import functools

import keras
import numpy as np

from keras_stss.models.features import feature_extractor


class VisualizeError(ValueError):
    """What cannot be looked at. Its text is meant for the user."""


class Network:
    """A model, or one network of an ensemble, with all that is worth looking at.

    Args:
        model: functional ``keras.Model`` from uint8 frames (B, T, H, W, 3) to logits (B, K).
        member: number of the network in an ensemble; None for a model that is none.

    Attributes:
        stages: {name: KerasTensor (B, T', H', W', C)} in the order of the model, blocks after them included.
        blocks: {name: layer} of the blocks that can say what motion they see.

    Raises:
        VisualizeError: for an ensemble without ``member``, and for a member that it does not have.
    """

    def __init__(self, model, member=None):
        everything = feature_extractor(model)
        self.model, self.inputs, self.tensors = model, everything.input, everything.output
        members = [layer.name.removesuffix("logits") for layer in model.layers if layer.name.endswith("_logits")]
        self.prefix = _prefix(members, member)
        self.logits = self.tensors[f"{self.prefix}logits"]
        own = {name: tensor for name, tensor in self.tensors.items() if name.startswith(self.prefix)}
        self.stages = {
            name.removeprefix(self.prefix): tensor
            for name, tensor in own.items()
            if "/" not in name and not name.endswith("logits")
        }
        names = dict.fromkeys(name.rpartition("/")[0] for name in own if "/" in name)
        self.blocks = {name.removeprefix(self.prefix): model.get_layer(name) for name in names}
        self._parts = {}

    def frames(self, clip):
        """The frames that this network sees of a clip: uint8 (T, H, W, 3) → (T', H, W, 3).

        Raises:
            VisualizeError: for what is no clip.
        """
        clip = np.asarray(clip)
        if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8 or 0 in clip.shape:
            raise VisualizeError(f"a clip is uint8 (T, H, W, 3). Received: shape={clip.shape}, dtype={clip.dtype}")
        if not self.prefix:
            return clip
        return np.asarray(self.model.get_layer(f"{self.prefix}frames")(clip[None]))[0]

    def see(self, clip, names):
        """Runs the network on one clip, in inference.

        Args:
            clip: uint8 (T, H, W, 3), of which an ensemble's network takes its own frames.
            names: of what is wanted: ``"logits"``, a stage, or ``"BLOCK/similarity"`` and the like.

        Returns:
            {name: array without the batch's axis, floating-point ones as float32}.
        """
        part = self.part(tuple(names))
        found = part(np.asarray(clip)[None], training=False)
        return {name: keras.ops.convert_to_numpy(keras.ops.cast(found[name], "float32"))[0] for name in names}

    def part(self, names):
        """The model from frames to a dictionary of what is named."""
        if names not in self._parts:
            outputs = {name: self.tensors[self.prefix + name] for name in names}
            self._parts[names] = keras.Model(self.inputs, outputs)
        return self._parts[names]

    def head(self, stage):
        """The model from the output of a stage to the logits."""
        if stage not in self._parts:
            self._parts[stage] = keras.Model(self.stages[stage], self.logits)
        return self._parts[stage]

    def kinds(self, block):
        """What a block says of the motion: ``"displacement"``, ``"similarity"``, …"""
        start = f"{self.prefix}{block}/"
        return [name.removeprefix(start) for name in self.tensors if name.startswith(start)]

    def check_stage(self, stage):
        """Raises VisualizeError where there is no such stage."""
        if stage not in self.stages:
            known = ", ".join(self.stages) or "none: it is not one of this project's models"
            raise VisualizeError(f"the model has no stage {stage!r}. It has: {known}")


def _prefix(members, member):
    """What the names of a network's layers begin with."""
    if member is None and members:
        raise VisualizeError(
            f"the model is an ensemble of {len(members)} networks, each of which sees other frames: choose one, from "
            f"0 to {len(members) - 1}, by member=… (--member)"
        )
    if member is None:
        return ""
    if not members:
        raise VisualizeError("the model is no ensemble: there is no member to choose")
    if not 0 <= member < len(members):
        raise VisualizeError(f"member must be from 0 to {len(members) - 1}. Received: {member}")
    return members[member]


@functools.lru_cache(maxsize=2)
def network_of(model, member=None):
    """The :class:`Network` of a model, made once: each leaves layers behind in the model's graph."""
    return Network(model, member)
