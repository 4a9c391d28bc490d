"""The native convolutions over tiny maps and their gradients (the kernels: ``cc/map_conv.h``)."""

import tensorflow as tf

from keras_stss.ops.native import library

#: Convolutions that the operation of a whole stack takes at most.
MOST_LAYERS = 16


def stack(maps, kernels, shifts, strides, paddings):
    """See :func:`keras_stss.ops.map_conv.stack`."""
    return library.load().keras_stss_map_conv_stack(
        maps, list(kernels), list(shifts), strides=_flat(strides), paddings=_flat(paddings)
    )


def pack(maps):
    """Maps (…, U, V, C) → (blocks, U, V, C, lanes) float32, every lane a map."""
    return library.load().keras_stss_map_pack(maps)


def count(maps):
    """Number of the maps of a tensor (…, U, V, C): int64 scalar."""
    return tf.reduce_prod(tf.shape(maps, out_type=tf.int64)[:-3])


def conv(packed, scale, shift, kernel, maps, strides, padding, statistics):
    """Convolution of packed ReLU(x · scale + shift), or of x itself where scale is None.

    Returns:
        The packed y, its mean and its biased variance per filter (zeros where ``statistics`` is false).
    """
    nothing = tf.zeros((0,), "float32")
    return library.load().keras_stss_map_conv(
        packed,
        nothing if scale is None else scale,
        nothing if scale is None else shift,
        kernel,
        maps,
        strides=strides,
        paddings=padding,
        activate=scale is not None,
        statistics=statistics,
    )


def finish(packed, scale, shift, like):
    """Packed y → ReLU(y · scale + shift) as (…, U', V', F), with leading axes and dtype of the maps ``like``."""
    leading = tf.shape(like, out_type=tf.int64)[:-3]
    shape = tf.concat([leading, tf.shape(packed, out_type=tf.int64)[1:-1]], axis=0)
    outputs = library.load().keras_stss_map_finish(packed, scale, shift, shape, T=like.dtype)
    outputs.set_shape(like.shape[:-3].concatenate(packed.shape[1:-1]))
    return outputs


def _flat(pairs):
    return [number for pair in pairs for number in pair]


@tf.RegisterGradient("KerasStss>MapPack")
def _pack_gradient(op, gradient):
    maps = op.inputs[0]
    return library.load().keras_stss_map_unpack(gradient, tf.shape(maps, out_type=tf.int64), T=maps.dtype)


@tf.RegisterGradient("KerasStss>MapConv")
def _conv_gradient(op, y_gradient, mean_gradient, variance_gradient):
    x, scale, shift, kernel, maps = op.inputs
    y, mean, _ = op.outputs
    attributes = {name: op.get_attr(name) for name in ("strides", "paddings", "activate", "statistics")}
    gradients = library.load().keras_stss_map_conv_grad(
        x, scale, shift, kernel, maps, y, mean, y_gradient, mean_gradient, variance_gradient, **attributes
    )
    return *gradients, None


@tf.RegisterGradient("KerasStss>MapFinish")
def _finish_gradient(op, gradient):
    packed, scale, shift, _ = op.inputs
    return *library.load().keras_stss_map_finish_grad(packed, scale, shift, gradient), None


@tf.RegisterGradient("KerasStss>MapConvStack")
def _stack_gradient(op, gradient):
    """Computes the stack anew, convolution by convolution, and goes back through it."""
    layers = op.get_attr("N")
    inputs, kernels, shifts = op.inputs[0], op.inputs[1 : 1 + layers], op.inputs[1 + layers :]
    strides, paddings = op.get_attr("strides"), op.get_attr("paddings")
    maps = count(inputs)
    done = []  # (x, scale, shift, y), what each convolution had and gave; the first has no activation before it
    x, scale, shift = pack(inputs), None, None
    for layer, kernel in enumerate(kernels):
        sides = slice(2 * layer, 2 * layer + 2)
        y, nothing, _ = conv(x, scale, shift, kernel, maps, strides[sides], paddings[sides], statistics=False)
        done.append((x, scale, shift, y))
        x, scale, shift = y, tf.ones_like(nothing), shifts[layer]
    operations = library.load()
    current, _, shift_gradient = operations.keras_stss_map_finish_grad(x, scale, shift, gradient)
    kernel_gradients, shift_gradients = [], [shift_gradient]
    for layer in reversed(range(layers)):
        x, scale, shift, y = done[layer]
        sides = slice(2 * layer, 2 * layer + 2)
        none = tf.zeros((0,), "float32")
        nothing = tf.zeros_like(shifts[layer])
        current, _, shift_gradient, kernel_gradient = operations.keras_stss_map_conv_grad(
            x,
            none if scale is None else scale,
            none if scale is None else shift,
            kernels[layer],
            maps,
            y,
            nothing,
            current,
            nothing,
            nothing,
            strides=strides[sides],
            paddings=paddings[sides],
            activate=scale is not None,
            statistics=False,
        )
        kernel_gradients.insert(0, kernel_gradient)
        if layer:
            shift_gradients.insert(0, shift_gradient)
    inputs_gradient = operations.keras_stss_map_unpack(current, tf.shape(inputs, out_type=tf.int64), T=inputs.dtype)
    return [inputs_gradient, *kernel_gradients, *shift_gradients]


def _refuse(op, *gradients):
    raise NotImplementedError(
        "the native convolution of maps has no second-order gradient: use implementation='reference' where gradients "
        "of gradients are needed"
    )


for _name in ("MapConvGrad", "MapFinishGrad"):
    tf.RegisterGradient(f"KerasStss>{_name}")(_refuse)


@tf.RegisterGradient("KerasStss>MapUnpack")
def _unpack_gradient(op, gradient):
    return pack(gradient), None
