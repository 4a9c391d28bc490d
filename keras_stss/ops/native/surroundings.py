"""What the code that calls an operation is being traced for."""

import tensorflow as tf

try:  # not public, but the only way to tell; TensorFlow's own operations ask here
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext as _in_xla
except ImportError:  # then XLA itself refuses the operation, by name

    def _in_xla(graph):
        return False


#: Strategies that run the graph in processes or on devices that do not have the library.
_ELSEWHERE = (
    tf.distribute.TPUStrategy,
    tf.distribute.experimental.TPUStrategy,
    tf.distribute.ParameterServerStrategy,
)


def obstacle():
    """The reason why no native operation can be part of what is traced now, or None."""
    if not tf.executing_eagerly() and _in_xla(tf.compat.v1.get_default_graph()):
        return "it is compiled by XLA here (jit_compile=True), which knows stock operations only"
    strategy = tf.distribute.get_strategy()
    if isinstance(strategy, _ELSEWHERE):
        return f"it is run by {type(strategy).__name__}, whose devices do not have the library"
    return None
