"""Parts of batches for replicas and workers: together they are the whole batches."""

import numpy as np
import pytest
import tensorflow as tf
from streams import LABELS, assert_same, batches, config, with_broken, write_clips

from keras_stss.data.pipeline import (
    Mix,
    TooManyUnreadable,
    Unreadable,
    evaluation_stream,
    next_position,
    training_stream,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("set"))


def together(streams):
    """The batches of all shards, put together again."""
    steps = zip(*streams, strict=True)
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in steps]


class TestTraining:
    def stream(self, clips, shard, batch_size, start=0, **arguments):
        data = config(max_unreadable=0.5)
        return training_stream(clips, LABELS, data, batch_size, 5, start, shard=shard, **arguments)

    @pytest.mark.parametrize(("count", "batch_size"), [(1, 3), (2, 6), (2, 7), (3, 7)])
    def test_shards_together_are_the_batch(self, clips, count, batch_size):
        parts = [batches(self.stream(clips, (index, count), batch_size), 4) for index in range(count)]
        assert max(len(part[0]["label"]) for part in parts) - min(len(part[0]["label"]) for part in parts) <= 1
        assert_same(together(parts), batches(self.stream(clips, None, batch_size), 4))

    def test_every_clip_once_an_epoch(self, clips):
        """Seven clips, three shards of batches of seven rows: two epochs are two steps, without a repeat or a loss."""
        parts = [batches(self.stream(clips, (index, 3), 7), 2) for index in range(3)]
        for step, batch in enumerate(together(parts)):
            assert batch["position"].tolist() == list(range(7 * step, 7 * step + 7))
            assert len({frames.tobytes() for frames in batch["frames"]}) == 7

    def test_continues_where_it_was(self, clips):
        whole = [batches(self.stream(clips, (index, 2), 5), 4) for index in range(2)]
        starts = [0, 0]
        for step in range(2):
            starts = [next_position(starts[n], whole[n][step]["position"], 5, (n, 2)) for n in range(2)]
        assert starts == [10, 10]  # all shards go on at the same one
        later = [batches(self.stream(clips, (index, 2), 5, starts[index]), 2) for index in range(2)]
        assert_same(together(later), together(whole)[2:])

    def test_a_broken_clip_does_not_put_shards_out_of_step(self, clips, tmp_path):
        """Any number of shards gives the same rows; another clip stands where the broken one would."""
        broken, shards = with_broken(clips, tmp_path, 2), (1, 2, 3)
        found = [together([batches(self.stream(broken, (n, count), 7), 3) for n in range(count)]) for count in shards]
        assert_same(found[0], found[1])
        assert_same(found[0], found[2])
        assert [batch["position"].tolist() for batch in found[0]] == [list(range(7 * n, 7 * n + 7)) for n in range(3)]
        good = batches(self.stream(clips, None, 7), 3)
        for batch, other in zip(found[0], good, strict=True):
            same = [(one == two).all() for one, two in zip(batch["frames"], other["frames"], strict=True)]
            assert sum(same) == 6

    def test_nothing_readable_ends(self, clips, tmp_path):
        broken = with_broken(clips, tmp_path, *range(7))
        registry = Unreadable(broken, 1.0)
        with pytest.raises(TooManyUnreadable), registry.explained():
            batches(self.stream(broken, (0, 2), 4, registry=registry), 1)

    @pytest.mark.parametrize(("count", "batch_size"), [(2, 8), (2, 7), (3, 8), (2, 2)])
    def test_mixed_as_the_whole(self, clips, count, batch_size):
        """Also where partners are in two shards."""
        mix = Mix(0.8, 1.0)
        parts = [batches(self.stream(clips, (index, count), batch_size, 5, mix=mix), 2) for index in range(count)]
        whole = batches(self.stream(clips, None, batch_size, 5, mix=mix), 2)
        assert_same(together(parts), whole)
        assert [len(batch["label"]) for batch in whole] == [batch_size] * 2
        stream = self.stream(clips, (0, count), batch_size, mix=mix)
        assert stream.element_spec["frames"].shape[0] == batch_size // count

    def test_in_a_distribution_strategy(self, clips):
        """As a worker takes its part: by the numbers of the input context."""
        strategy = tf.distribute.get_strategy()

        def part(context):
            return self.stream(clips, (context.input_pipeline_id, context.num_input_pipelines), 6)

        found = next(iter(strategy.distribute_datasets_from_function(part)))
        assert_same([{name: value.numpy() for name, value in found.items()}], batches(self.stream(clips, None, 6), 1))

    @pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 7)])
    def test_refusals(self, clips, shard):
        with pytest.raises(ValueError, match="batch_size=6"):
            self.stream(clips, shard, 6)


class TestEvaluation:
    @pytest.mark.parametrize(("count", "batch_size"), [(1, 3), (2, 4), (2, 3), (3, 5), (3, 9)])
    def test_shards_together_are_the_batch(self, clips, count, batch_size):
        """The last batch too: the same number of steps, filled up and masked, some of them without any clip."""
        parts = [batches(evaluation_stream(clips, config(), batch_size, shard=(n, count)), -1) for n in range(count)]
        whole = batches(evaluation_stream(clips, config(), batch_size), -1)
        found = together(parts)
        assert_same(found, whole)
        index = np.concatenate([batch["index"] for batch in found])
        assert sorted(index[index >= 0]) == list(range(7)) and sum(batch["weight"].sum() for batch in found) == 7

    def test_shapes_are_static(self, clips):
        spec = evaluation_stream(clips, config(), 5, shard=(1, 2)).element_spec
        assert spec["frames"] == tf.TensorSpec((3, 4, 24, 24, 3), tf.uint8)
        assert training_stream(clips, LABELS, config(), 5, 0, shard=(0, 2)).element_spec["frames"].shape[0] == 2

    def test_a_broken_clip_keeps_its_row_and_does_not_count(self, clips, tmp_path):
        broken = with_broken(clips, tmp_path, 1)
        data = config(max_unreadable=0.5)
        found = together([batches(evaluation_stream(broken, data, 4, shard=(n, 2)), -1) for n in range(2)])
        assert [batch["index"].tolist() for batch in found] == [[0, -1, 2, 3], [4, 5, 6, -1]]
        assert [batch["weight"].tolist() for batch in found] == [[1, 0, 1, 1], [1, 1, 1, 0]]
        assert not found[0]["frames"][1].any() and found[0]["label"][1] == 0
