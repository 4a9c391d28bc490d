"""Losses: cross-entropy, and the correlation loss of Twins Training."""

import tensorflow as tf

#: A class whose logits have a smaller sum of squares over the batch correlates with nothing: its direction is noise.
TINY = 1e-20


def cross_entropy(logits, targets, smoothing=0.0):
    """Cross-entropy of each clip, in float32.

    Args:
        logits: (B, K), any float type.
        targets: class indices (B,), or probabilities (B, K) such as those of blended clips.
        smoothing: part of the probability that is spread over all classes alike (Szegedy et al., CVPR 2016).

    Returns:
        (B,) float32.
    """
    logits = tf.cast(logits, tf.float32)  # (B, K)
    targets = tf.convert_to_tensor(targets)
    if targets.dtype.is_integer:
        targets = tf.one_hot(targets, logits.shape[-1])
    targets = tf.cast(targets, tf.float32)  # (B, K)
    if smoothing:
        targets = targets * (1.0 - smoothing) + smoothing / logits.shape[-1]
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)  # (B,)


def twins(logits_a, logits_b, beta, total=None):
    """Correlation loss of two views of the same clips (STM, section 3.5, eq. 8 and 9).

    C_ij is the cosine of class i's logits of the first view and class j's of the second, taken as vectors over the
    batch, without subtracting their means; the loss is Σ_i (1 - C_ii)² + β Σ_i Σ_j≠i C_ij². The paper first scales each
    class's logits to length 1 along the batch, which leaves the cosines as they are. A class whose logits are all zero
    has C = 0 and gives no gradient.

    Args:
        logits_a, logits_b: (B, K) of this replica's clips.
        beta: weight of the second sum.
        total: sums a tensor over all replicas, see :func:`global_total`; None for this replica's clips alone.

    Returns:
        The loss over the global batch, a float32 scalar that is the same on all replicas. Its gradient is this
        replica's part: summed over the replicas, gradients are those of the one loss. The value itself counts once: to
        report a sum over replicas, divide it by their number.
    """
    a, b = tf.cast(logits_a, tf.float32), tf.cast(logits_b, tf.float32)  # (B, K)
    # All sums over the batch at once, straight from the logits: a sum made of other replicas' sums would have the wrong
    # gradient. The diagonal is summed apart, since GPUs multiply matrices with short mantissas, and 1 - C_ii cancels.
    sums = tf.concat([_rows(a * a), _rows(b * b), _rows(a * b), tf.matmul(a, b, transpose_a=True)], axis=0)
    if total is not None:
        sums = total(sums)  # (3 + K, K)
    scale_a, scale_b = _inverse_root(sums[0]), _inverse_root(sums[1])  # (K,)
    same = sums[2] * scale_a * scale_b  # (K,)
    different = sums[3:] * scale_a[:, None] * scale_b[None, :]  # (K, K)
    different = tf.linalg.set_diag(different, tf.zeros_like(same))
    return tf.reduce_sum(tf.square(1.0 - same)) + beta * tf.reduce_sum(tf.square(different))


def _rows(products):
    return tf.reduce_sum(products, axis=0, keepdims=True)  # (1, K)


def _inverse_root(squares):
    """1 / √, and 0 with no gradient where there is nothing to take a root of."""
    there = squares > TINY
    return tf.where(there, tf.math.rsqrt(tf.where(there, squares, 1.0)), 0.0)


def global_total(context):
    """A function that sums a tensor over all replicas, for :func:`twins`.

    The gradient flows to the replica's own part only: where each replica computes the same function of the sums, its
    gradient is its clips' share, and the sum of the gradients over replicas is the whole.

    Args:
        context: the ``tf.distribute.ReplicaContext`` in which the function will be called.
    """
    if context.num_replicas_in_sync == 1:
        return tf.identity

    def total(local):
        everywhere = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stop_gradient(local))
        return local + tf.stop_gradient(everywhere - local)

    return total
