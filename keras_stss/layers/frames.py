"""Steps on single frames."""

import keras
from keras import ops

from keras_stss.layers.fold import fold, unfold

#: Mean and standard deviation of ImageNet's pixels in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@keras.saving.register_keras_serializable(package="keras_stss")
class NormalizeFrames(keras.layers.Layer):
    """Pixels 0…255 → (pixel / 255 - mean) / std, by channel.

    Args:
        mean: three numbers for pixels in [0, 1].
        std: three numbers, the same.

    Input shape: (B, T, H, W, 3), any numeric dtype. Output shape: the same, in the compute dtype.
    """

    def __init__(self, mean=IMAGENET_MEAN, std=IMAGENET_STD, **kwargs):
        # Bytes are exact in every compute dtype, and must not be cast before they are scaled.
        super().__init__(autocast=False, **kwargs)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must be three numbers, std positive. Received: mean={mean}, std={std}")
        self.mean = mean
        self.std = std

    def call(self, frames):
        scale = ops.convert_to_tensor([1 / (255 * std) for std in self.std], dtype="float32")
        shift = ops.convert_to_tensor([-mean / std for mean, std in zip(self.mean, self.std)], dtype="float32")
        return ops.cast(ops.cast(frames, "float32") * scale + shift, self.compute_dtype)

    def compute_output_spec(self, frames):
        return keras.KerasTensor(self.compute_output_shape(frames.shape), dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "mean": self.mean, "std": self.std}


@keras.saving.register_keras_serializable(package="keras_stss")
class FrameMaxPooling(keras.layers.Layer):
    """3×3 maximum over each frame with stride 2, padded alike on both sides as in PyTorch.

    Input shape: (B, T, H, W, C), values from a ReLU. Output shape: (B, T, (H + 1) // 2, (W + 1) // 2, C).
    """

    def call(self, frames):
        # Zero is below nothing that a ReLU gives, so it may stand for the minus infinity outside.
        padded = ops.pad(fold(frames), ((0, 0), (1, 1), (1, 1), (0, 0)))
        return unfold(ops.max_pool(padded, 3, 2, padding="valid", data_format="channels_last"), like=frames)

    def compute_output_shape(self, shape):
        return (*shape[:-3], *(size and (size + 1) // 2 for size in shape[-3:-1]), shape[-1])
