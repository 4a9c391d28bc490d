"""What the workers of a job tell each other, and how a stream is shared out among their devices.

A job has one worker or several (``tf.distribute.MultiWorkerMirroredStrategy``); with one, nothing here communicates.
All workers must call these functions in the same order.
"""

import json
import weakref

import numpy as np
import tensorflow as tf


def workers(strategy):
    """(index of this worker, number of workers)."""
    count = getattr(strategy.extended, "_num_workers", 1)
    return (strategy.cluster_resolver.task_id, count) if count > 1 else (0, 1)


def is_chief(strategy):
    """Whether this process is the one that writes the run's folder."""
    return workers(strategy)[0] == 0


def from_chief(strategy, value):
    """The chief's JSON value, on every worker."""
    return _exchange(strategy, value if is_chief(strategy) else None)[0]


def gather(strategy, value):
    """The JSON values of all workers, in their order, on every worker."""
    return _exchange(strategy, value)


def _exchange(strategy, value):
    index, count = workers(strategy)
    if count == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.zeros(count, np.float32)
    lengths[index] = len(text)
    lengths = sum_arrays(strategy, lengths).astype(int)
    # Few lengths, or each exchange would trace another graph.
    table = np.zeros((count, 1 << int(lengths.max() - 1).bit_length()), np.float32)
    table[index, : len(text)] = text
    table = sum_arrays(strategy, table).astype(np.uint8)
    return [json.loads(row[:length].tobytes()) for row, length in zip(table, lengths, strict=True)]


def sum_arrays(strategy, values):
    """The sum over workers of a float32 array, which has the same shape on all of them; exact where one is not zero."""
    values = np.asarray(values, np.float32)
    if workers(strategy)[1] == 1:
        return values
    # Each worker has several replicas, but counts once.
    local = iter([tf.constant(values)])
    parts = strategy.experimental_distribute_values_from_function(
        lambda _: next(local, tf.zeros(values.shape, tf.float32))
    )
    return strategy.experimental_local_results(_summing(strategy)(parts))[0].numpy()


_SUMMING = weakref.WeakKeyDictionary()


def _summing(strategy):
    if strategy not in _SUMMING:
        weak = weakref.proxy(strategy)  # the value of a weak key must not hold it
        _SUMMING[strategy] = tf.function(lambda parts: weak.run(_sum_over_replicas, args=(parts,)))
    return _SUMMING[strategy]


def _sum_over_replicas(values):
    # The identity has a device, which the exchange asks for.
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(values))


def training_batches(strategy, make_stream, batch_size):
    """The training stream, shared out among the replicas.

    Args:
        strategy: ``tf.distribute.Strategy``.
        make_stream: function of a shard, (index, count) or None, that makes a stream without end (see
            :func:`keras_stss.data.pipeline.training_stream`).
        batch_size: clips a step over all replicas.

    Returns:
        A distributed dataset; the replicas' parts of a batch together are the stream's, row for row.
    """
    index, count = workers(strategy)
    if count == 1:
        return strategy.experimental_distribute_dataset(make_stream(None))
    return distribute_shard(strategy, make_stream((index, count)), batch_size)


def distribute_shard(strategy, stream, batch_size):
    """A worker's shard of a stream, cut into the parts of the worker's replicas."""
    rows = batch_size // strategy.num_replicas_in_sync
    if strategy.num_replicas_in_sync > workers(strategy)[1]:
        stream = stream.rebatch(rows, drop_remainder=True)
    return strategy.distribute_datasets_from_function(lambda _: stream)
