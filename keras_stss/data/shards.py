"""Which rows of a batch a replica or worker makes.

The rows of a batch are cut into contiguous parts, one a shard. Where their number is no multiple of the shards', some
parts have one row more; all shards have the same number of steps.
"""

import tensorflow as tf


def shard_rows(batch_size, shard):
    """Rows of each batch that belong to a shard.

    Args:
        batch_size: B, rows of the whole batch.
        shard: (index, count).

    Returns:
        (first row, number of rows).
    """
    index, count = shard
    if not 0 <= index < count <= batch_size:
        raise ValueError(
            "shard must be (index, count) with index from 0 to count - 1, and count at most the batch size. "
            f"Received: shard={tuple(shard)}, batch_size={batch_size}"
        )
    first, end = index * batch_size // count, (index + 1) * batch_size // count
    return first, end - first


def whole_pairs(first, rows, batch_size):
    """The smallest part of a batch that holds these rows and, of each, its partner: rows 0 and 1, 2 and 3 and so on.

    The last row of a batch of odd size has none.

    Args:
        first, rows: as :func:`shard_rows` gives them.
        batch_size: B, rows of the whole batch.

    Returns:
        (first row, number of rows).
    """
    start, end = first - first % 2, first + rows
    return start, min(end + end % 2, batch_size) - start


def row_numbers(batch_size, first, rows, steps=None):
    """Some rows of each batch, numbered through all batches: int64 dataset of ``steps`` batches, endless without."""
    counted = tf.data.Dataset.counter() if steps is None else tf.data.Dataset.range(steps * rows)
    return counted.map(lambda number: number // rows * batch_size + first + number % rows)
