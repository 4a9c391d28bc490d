"""What a motion block sees, as outputs of a model."""

import keras


@keras.saving.register_keras_serializable(package="keras_stss")
class MotionFeatures(keras.layers.Layer):
    """Calls ``motion_features`` of a block, which is in the model too and lends its weights.

    Args:
        block: layer with a method ``motion_features``.

    Input shape: that of the block. Output: dictionary of tensors as the block gives it.
    """

    def __init__(self, block, **kwargs):
        super().__init__(**{"dtype": block.dtype_policy, "trainable": block.trainable, **kwargs})
        self.block = block

    def build(self, input_shape):
        if not self.block.built:
            self.block.build(input_shape)

    def call(self, inputs):
        return self.block.motion_features(inputs)

    def get_config(self):
        return {**super().get_config(), "block": keras.saving.serialize_keras_object(self.block)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "block": keras.saving.deserialize_keras_object(config["block"])})
