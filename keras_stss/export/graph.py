"""The graph that LiteRT, ONNX and OpenVINO are converted from: frames of the crop's size in, probabilities out."""

import errno

import tensorflow as tf

from keras_stss.export.fold import fold_batch_norm


def classifier(model, shape):
    """A model with a softmax behind it, in float32, batch normalisation folded.

    Args:
        model: ``keras.Model`` from uint8 frames (B, T, H, W, 3) to logits (B, K).
        shape: (B, T, H, W, 3) of the frames, all known: what depends on sizes becomes a constant.

    Returns:
        ``tf.function`` from ``frames`` to {"probabilities": float32 (B, K)}, to be traced inside
        :func:`keras_stss.ops.portable`.
    """
    folded = fold_batch_norm(model, dtype="float32")

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8, name="frames")], autograph=False)
    def classify(frames):
        return {"probabilities": tf.nn.softmax(tf.cast(folded(frames, training=False), tf.float32))}

    return classify


def save_graph(classify, folder):
    """Writes it as a SavedModel whose signature ``serving_default`` it is."""
    save_functions({"serving_default": classify}, list(classify.get_concrete_function().graph.variables), folder)


def save_functions(signatures, variables, folder):
    """Writes functions, and the variables that they read, as a SavedModel.

    Args:
        signatures: {name: ``tf.function``, or concrete function}.
        variables: list of ``tf.Variable``.
        folder: to write.

    Raises:
        OSError: where it cannot be written.
    """
    # Bare variables: a Keras model would be saved with its Python side, and loading would look for Keras.
    module = tf.Module()
    module.model_variables = variables
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    try:
        tf.saved_model.save(module, str(folder), signatures=signatures, options=options)
    except tf.errors.OpError as error:  # of a full disk, too
        reason = (error.message or type(error).__name__).splitlines()[0].rpartition("; ")[2].split(" [Op:")[0]
        raise OSError(errno.EIO, reason, str(folder)) from None
