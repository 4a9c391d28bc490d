"""ONNX, for ONNX Runtime and whatever else reads it."""

import json
import logging

#: Version of the operator set: the newest that tf2onnx writes.
OPSET = 18


def save(classify, saved_model, file, labels):
    """Converts a traced classifier; the labels are in the file's metadata."""
    import onnx
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model, _ = tf2onnx.convert.from_function(classify, classify.input_signature, opset=OPSET)
    onnx.helper.set_model_props(model, {"labels": json.dumps(labels, ensure_ascii=False)})
    onnx.checker.check_model(model)
    file.write_bytes(model.SerializeToString())


def load(file, threads):
    """A function from frames to probabilities, by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda frames: session.run(["probabilities"], {"frames": frames})[0]
