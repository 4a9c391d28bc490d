"""Where a network sees things move: displacement and confidence, and the self-similarity behind them."""

import dataclasses

import keras
import numpy as np

from keras_stss.blocks import MotionSqueezeBlock
from keras_stss.ops import stss
from keras_stss.ops.soft_argmax import soft_argmax
from keras_stss.visualize.network import VisualizeError, network_of

#: How a stage's own features are compared where no block does it: as SELFY does by default.
OFFSETS, WINDOW = (-2, -1, 0, 1, 2), (9, 9)
#: Of stages without a block, the last whose cells are no larger than so many pixels: beyond, a cell holds too much.
LARGEST_CELL = 8


@dataclasses.dataclass(frozen=True, eq=False)
class MotionMap:
    """What one block sees of the motion in a clip, place by place; one place of its map is a cell.

    Attributes:
        name: of the block's layer, or of the stage whose features were compared.
        from_block: whether a block of the model computes this. Else it is computed here out of the stage's features,
            and the model knows nothing of it.
        offsets: temporal offsets l, in frames of the map.
        similarity: float32 (T', H', W', L, U, V); 0 outside of the clip.
        displacement: float32 (T', H', W', L, 2), in cells: how far to the right and downwards, in frame t+l, lies what
            frame t shows here. NaN where the clip has no frame t+l.
        confidence: float32 (T', H', W', L), the largest similarity; NaN likewise.
        frames: T' indices of the clip's frames that the map's stand for; where the network shortens time, of the middle
            ones.
        size: (T, H, W) of the clip.
    """

    name: str
    from_block: bool
    offsets: tuple[int, ...]
    similarity: np.ndarray
    displacement: np.ndarray
    confidence: np.ndarray
    frames: np.ndarray
    size: tuple[int, int, int]

    @property
    def cell(self):
        """(height, width) of a cell in pixels of the clip."""
        return self.size[1] / self.similarity.shape[1], self.size[2] / self.similarity.shape[2]

    @property
    def moving(self):
        """Places in ``offsets`` of those that compare a frame with another one."""
        return [place for place, offset in enumerate(self.offsets) if offset]

    def strongest(self):
        """The middle (x, y, t) of the cell with the strongest motion, in pixels and frames of the clip.

        Strongest is what moves far and stands out: length times what the confidence exceeds the window's mean by, at
        the nearest other frames, in the mean of 3×3 cells. Where a window reaches over the edge of the map, an even
        wall seems to move inwards: such cells do not count, as far as others are left.
        """
        nearest = min((abs(self.offsets[place]) for place in self.moving), default=None)
        chosen = [place for place in self.moving if abs(self.offsets[place]) == nearest]
        if not chosen:
            raise VisualizeError(f"{self.name} compares no frame with another one. Received: offsets={self.offsets}")
        # Of neighbours together: single matches that are far off stay behind those that agree.
        length = np.linalg.norm(_local_means(self.displacement[..., chosen, :]), axis=-1)  # (T', H', W', L')
        above = self.confidence[..., chosen] - self.similarity[..., chosen, :, :].mean((-2, -1))
        strength = np.where(np.isfinite(length), length * above, -1.0)
        strength[:, self._near_edge()] = -1.0
        t, y, x, _ = np.unravel_index(np.argmax(strength), strength.shape)
        return (x + 0.5) * self.cell[1], (y + 0.5) * self.cell[0], int(self.frames[t])

    def _near_edge(self):
        """Which cells (H', W') have a window that reaches over the edge; at most the outer half each way."""
        size, window = self.similarity.shape[1:3], self.similarity.shape[4:]
        inner = []
        for side, radius in zip(size, (each // 2 for each in window)):
            margin, places = min(radius, side // 4), np.arange(side)
            inner.append((places >= margin) & (places < side - margin))
        return ~(inner[0][:, None] & inner[1])

    def similarity_at(self, point=None):
        """The self-similarity of one point.

        Args:
            point: (x, y, t) in pixels and frames of the clip, from 0; None for the strongest motion.

        Returns:
            :class:`PointSimilarity` of the cell that the point lies in.

        Raises:
            VisualizeError: for a point outside of the clip.
        """
        x, y, t = self.strongest() if point is None else point
        check_point((x, y, t), self.size)
        row, column = int(y // self.cell[0]), int(x // self.cell[1])
        place = int(np.argmin(np.abs(self.frames - t)))
        partners = [place + offset for offset in self.offsets]
        return PointSimilarity(
            name=self.name,
            offsets=self.offsets,
            volume=self.similarity[place, row, column],
            point=(float(x), float(y), int(self.frames[place])),
            place=(place, row, column),
            frames=tuple(int(self.frames[each]) if 0 <= each < len(self.frames) else None for each in partners),
            cell=self.cell,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class PointSimilarity:
    """How like its surroundings in other frames one point is.

    Attributes:
        name: of the block's layer, or of the stage.
        offsets: L temporal offsets.
        volume: float32 (L, U, V).
        point: (x, y, t) in pixels and frames of the clip.
        place: (t, y, x) of the cell in the map.
        frames: for each offset the clip's frame, or None where it has none.
        cell: (height, width) of a cell in pixels.
    """

    name: str
    offsets: tuple[int, ...]
    volume: np.ndarray
    point: tuple[float, float, int]
    place: tuple[int, int, int]
    frames: tuple[int | None, ...]
    cell: tuple[float, float]

    @property
    def box(self):
        """(top, left, height, width) of the window in pixels; it may reach out of the frame."""
        (rows, columns), (_, y, x) = self.volume.shape[1:], self.place
        high, wide = self.cell
        return (y - rows // 2) * high, (x - columns // 2) * wide, rows * high, columns * wide


@dataclasses.dataclass(frozen=True, eq=False)
class ChangeMap:
    """Where the features of neighbouring frames differ for STM's channel-wise motion module, which knows no direction.

    Attributes:
        name: of the block's layer.
        strength: float32 (T', H', W'), the length of H (STM, Wang et al., eq. 2) over its channels.
        frames: as of :class:`MotionMap`.
    """

    name: str
    strength: np.ndarray
    frames: np.ndarray


def motion_maps(model, clip, stage=None, member=None):
    """Displacement, confidence and self-similarity as a network sees them in one clip.

    Of blocks that draw displacements out of the self-similarity (MotionSqueeze, SELFY with a soft-argmax) these are
    theirs; of a SELFY block with another extraction, the soft-argmax of its own self-similarity. Where there is no such
    block, features of a stage are compared in the same way, which shows what they would tell a block put there.

    Args:
        model: ``keras.Model`` from uint8 frames (B, T, H, W, 3) to logits, as :func:`keras_stss.load_model` gives it;
            anyone's functional model with motion blocks, too.
        clip: uint8 (T, H, W, 3), the frames as the model shall see them.
        stage: look there alone: at its blocks, or, where it has none, at its features. Without, all blocks are looked
            at, and without any block the deepest stage whose cells are not larger than 8 pixels.
        member: network of an ensemble, from 0.

    Returns:
        List of :class:`MotionMap`.

    Raises:
        VisualizeError: for a stage that there is not, for what is no clip, and for an ensemble without ``member``.
    """
    network = network_of(model, member)
    shown = network.frames(clip)
    if stage is not None:
        network.check_stage(stage)
    blocks = [name for name in network.blocks if "displacement" in network.kinds(name) and _is_at(name, stage)]
    if not blocks:
        return [_of_features(network, clip, shown, stage or _fitting_stage(network, shown.shape[1:3]))]
    kinds = ("similarity", "displacement", "confidence")
    found = network.see(clip, [f"{name}/{kind}" for name in blocks for kind in kinds])
    return [_of_block(network, name, [found[f"{name}/{kind}"] for kind in kinds], shown) for name in blocks]


def change_maps(model, clip, stage=None, member=None):
    """The feature differences of STM's motion modules in one clip: of the last block of each stage.

    Args:
        model, clip, stage, member: as of :func:`motion_maps`.

    Returns:
        List of :class:`ChangeMap`, empty for models without such a module.
    """
    network = network_of(model, member)
    shown = network.frames(clip)
    blocks = {name.split("_")[0]: name for name in network.blocks if "motion" in network.kinds(name)}
    blocks = [name for name in blocks.values() if _is_at(name, stage)]
    found = network.see(clip, [f"{name}/motion" for name in blocks]) if blocks else {}
    return [_change(name, found[f"{name}/motion"], shown) for name in blocks]


def self_similarity_at(model, clip, point=None, block=None, stage=None, member=None):
    """How like its surroundings in other frames one point of a clip is, for a network (SELFY, Kwon et al., eq. 1).

    Args:
        model, clip, stage, member: as of :func:`motion_maps`.
        point: (x, y, t) in pixels and frames of the clip, from 0; None for the place with the strongest motion.
        block: name of the block's layer; None for the first.

    Returns:
        :class:`PointSimilarity`; its ``volume`` (L, U, V) is that of :func:`keras_stss.ops.stss` at the point's cell.

    Raises:
        VisualizeError: as :func:`motion_maps`, and for a point outside of the clip or a block that there is not.
    """
    maps = {found.name: found for found in motion_maps(model, clip, stage, member)}
    if block is not None and block not in maps:
        raise VisualizeError(f"there is no motion block {block!r}. There are: {', '.join(maps)}")
    return (maps[block] if block else next(iter(maps.values()))).similarity_at(point)


def check_point(point, size):
    """Raises VisualizeError for a point (x, y, t) outside of a clip of a size (T, H, W, …)."""
    (x, y, t), (length, height, width) = point, size[:3]
    if not (0 <= x < width and 0 <= y < height and 0 <= t < length):
        raise VisualizeError(
            f"the point must lie inside the clip: x from 0 to {width - 1}, y from 0 to {height - 1}, t from 0 to "
            f"{length - 1}. Received: x={x:g}, y={y:g}, t={t:g}"
        )


def _local_means(maps):
    """Means of each place (axes 1 and 2) and its neighbours."""
    for axis in (1, 2):
        padded = np.pad(maps, [(int(each == axis),) * 2 for each in range(maps.ndim)], mode="edge")
        size = maps.shape[axis]
        maps = sum(np.take(padded, range(start, start + size), axis) for start in range(3)) / 3
    return maps


def _is_at(block, stage):
    return stage is None or block.startswith(f"{stage}_")


def _of_block(network, name, found, shown):
    layer = network.blocks[name]
    if isinstance(layer, MotionSqueezeBlock):
        offsets = layer.displacement.temporal_offsets
        similarity, displacement, confidence = (_to_own_frames(values, offsets, layer.causal) for values in found)
        displacement = -displacement if layer.causal else displacement  # causal ones were turned round
    else:
        offsets, (similarity, displacement, confidence) = layer.temporal_offsets, found
    return _map(name, True, offsets, similarity, displacement, confidence[..., 0], shown)


def _to_own_frames(values, offsets, causal):
    """Each entry to the frame that it was measured on: MotionSqueeze lists those of a pair together.

    Args:
        values: (T, H, W, L, …) of pairs (t, t+1) at t, or with ``causal`` of (t-1, t) at t.
        offsets: 1 and perhaps -1, or with ``causal`` -1 and perhaps 1.
    """
    moved = np.zeros_like(values)
    for place, offset in enumerate(offsets):
        later = (offset < 0) - causal  # how much later than its pair's entry the frame is
        there = range(max(0, -offset), values.shape[0] - max(0, offset))
        for time in there:
            moved[time, :, :, place] = values[time - later, :, :, place]
    return moved


def _of_features(network, clip, shown, stage):
    features = network.see(clip, [stage])[stage][None]  # (1, T', H', W', C)
    volume = stss(features, OFFSETS, WINDOW)
    displacement = np.asarray(soft_argmax(volume))[0] * np.array([WINDOW[1] // 2, WINDOW[0] // 2], "float32")
    volume = np.asarray(volume)[0]
    return _map(stage, False, OFFSETS, volume, displacement, volume.max((-2, -1)), shown)


def _map(name, from_block, offsets, similarity, displacement, confidence, shown):
    """A map of arrays that say nothing of frames outside of the clip yet; ``shown`` are the clip's (T, H, W, 3)."""
    time = len(similarity)
    displacement, confidence = displacement.copy(), confidence.copy()
    for place, offset in enumerate(offsets):
        outside = [each for each in range(time) if not 0 <= each + offset < time]
        displacement[outside, :, :, place] = np.nan
        confidence[outside, :, :, place] = np.nan
    frames = _frames_of_map(time, len(shown))
    return MotionMap(
        name, from_block, tuple(offsets), similarity, displacement, confidence, frames, tuple(shown.shape[:3])
    )


def _change(name, motion, shown):
    return ChangeMap(name, np.linalg.norm(motion, axis=-1), _frames_of_map(len(motion), len(shown)))


def _frames_of_map(shorter, frames):
    """The middle ones of the frames that each time of a shorter map stands for."""
    return ((2 * np.arange(shorter) + 1) * frames - shorter) // (2 * shorter)


def _fitting_stage(network, size):
    if not network.stages:
        raise VisualizeError("the model has no motion block, and it is none of this project, whose stages are known")
    sizes = {stage: tensor.shape for stage, tensor in _sized(network, size).items()}
    fitting = [stage for stage, shape in sizes.items() if max(size[0] / shape[2], size[1] / shape[3]) <= LARGEST_CELL]
    return fitting[-1] if fitting else next(iter(sizes))


def _sized(network, size):
    """The stages' outputs for frames of a size."""
    frames = keras.KerasTensor((1, 8, *size, 3), dtype="uint8")
    return network.part(tuple(network.stages)).compute_output_spec(frames)
