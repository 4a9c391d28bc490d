"""Cost: hand-computed products, one count whatever computes them, and the papers' cost columns."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_stss import blocks, build_model
from keras_stss.cli import main
from keras_stss.config import parse_config
from keras_stss.cost import NOT_COUNTED, CostError, cost, count
from keras_stss.cost.papers import TOLERANCE, compare
from keras_stss.cost.rows import paper_rows
from keras_stss.cost.table import markdown_papers, render_model, render_papers
from keras_stss.layers import (
    ConvBN,
    ConvExtractor,
    ConvIntegrator,
    Displacement,
    MapConvBN,
    SpatioTemporalSelfSimilarity,
)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cost.md"


def products(model, **clip):
    return sum(row.multiply_adds for row in count(model, **clip))


def one(layer, shape):
    """A model of one layer, on inputs of that shape."""
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


def config_of(frames=8, crop=224, **model):
    return parse_config(
        {"data": {"format": "something_v1", "root": "", "frames": frames, "crop": crop}, "model": model}
    )


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        # Output positions × kernel × channels × filters.
        (layers.Conv2D(4, (3, 5), strides=2, padding="same"), (8, 6, 3), (4 * 3) * (3 * 5) * 3 * 4),
        (layers.Conv2D(4, 3, padding="valid"), (8, 6, 3), (6 * 4) * 9 * 3 * 4),
        (layers.Conv2D(4, 3, padding="same", groups=2), (8, 6, 6), (8 * 6) * 9 * 3 * 4),
        (layers.Conv1D(4, 3, padding="same"), (8, 3), 8 * 3 * 3 * 4),
        (layers.Conv3D(4, (3, 1, 2), padding="same"), (5, 8, 6, 3), (5 * 8 * 6) * 6 * 3 * 4),
        (layers.Conv2DTranspose(4, 2, strides=2), (8, 6, 3), (8 * 6) * 4 * 3 * 4),
        (layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2), (8, 6, 3), (4 * 3) * 9 * 3 * 2),
        (layers.SeparableConv2D(4, 3, padding="same"), (8, 6, 3), (8 * 6) * (9 * 3 + 3 * 4)),
        (layers.Dense(4), (8, 6, 3), 8 * 6 * 3 * 4),
        (layers.EinsumDense("abc,cde->abde", (None, 4, 5)), (6, 3), 6 * 3 * 4 * 5),
        # Four projections, and scores and means of all pairs of 6 places in 2 heads of 4 channels.
        (lambda x: layers.MultiHeadAttention(2, 4)(x, x), (6, 8), 4 * 6 * 8 * 8 + 2 * (2 * 6 * 6 * 4)),
        (lambda x: ops.dot_product_attention(x, x, x), (6, 2, 4), 2 * (2 * 6 * 6 * 4)),
        (lambda x: ops.einsum("bij,bkj->bik", x, x), (6, 3), 6 * 6 * 3),
        (lambda x: ops.einsum("...ij,...kj->...ik", x, x), (5, 6, 3), 5 * 6 * 6 * 3),
        (lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1))), (6, 3), 6 * 6 * 3),
        (lambda x: ops.tensordot(x, x, axes=((0, 2), (0, 2))), (6, 3), 6 * 6 * 3),
        # Positions × window × channels, and nothing for the soft-argmax.
        (SpatioTemporalSelfSimilarity((-1, 2), (3, 5)), (3, 4, 5, 6), (3 * 4 * 5) * 2 * 15 * 6),
        (Displacement((1,), (5, 3), sigma=None), (3, 4, 5, 6), (3 * 4 * 5) * 15 * 6),
        (layers.Softmax(), (8, 6, 3), 0),
    ],
)
def test_products_by_hand(layer, shape, expected):
    assert products(one(layer, shape)) == expected


def test_map_convolutions_are_convolutions():
    """However they are computed, and as many parameters."""
    shape, found = (2, 3, 3, 2, 9, 9, 4), []
    for layer in (ConvBN(16, 3, 2), MapConvBN(16, 3, 2)):
        rows = count(one(layer, shape))
        found.append((sum(row.multiply_adds for row in rows), sum(row.parameters for row in rows)))
    assert found[0] == found[1] == ((2 * 3 * 3 * 2) * 25 * 9 * 4 * 16, 9 * 4 * 16 + 2 * 16)


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("name", ["SELFYBlock", "MotionSqueezeBlock"])
def test_the_implementation_does_not_matter(name, implementation):
    shape = (3, 10, 12, 8)
    rows = [
        count(one(getattr(blocks, name)(implementation=kind, name="block"), shape)) for kind in ("auto", implementation)
    ]
    assert rows[0] == rows[1]


def test_extraction_by_hand():
    """9×9 → 9 → 5 → 3 → 1 with 1×3×3 kernels (SELFY): 137,124 products a position and offset."""
    by_map = 81 * 9 * 4 + 25 * 9 * 4 * 16 + 9 * 9 * 16 * 64 + 9 * 64 * 64
    assert by_map == 137124
    assert products(one(ConvExtractor(), (2, 3, 3, 5, 9, 9))) == (2 * 3 * 3 * 5) * by_map


def test_zeros_between_rows_are_not_multiplied():
    """The transposed convolution of stride 2 with a 1×1 kernel costs what it costs before its rows are spread."""
    layer = ConvIntegrator(8, (4, 5), upsample=2, variant="released")
    assert products(one(layer, (2, 3, 3, 2, 6))) == (2 * 9) * (2 * 9 * 6 * 4 + 9 * 2 * 4 * 5 + 5 * 8)


BY_HAND = {
    # N = 2·4·4 positions, all pairs of them twice, four projections to or from C // 2.
    "NonLocalBlock": ({}, 4 * 32 * 8 * 4 + 2 * 32 * 32 * 4),
    # All pairs, then k = 8 pairs a position through (3 + 2C) → 2 → 4, and 4 → C.
    "CorrespondenceBlock": ({}, 32 * 32 * 8 + 32 * 8 * (19 * 2 + 2 * 4) + 32 * 4 * 8),
    # 1×1 to C / 4, a window of 3×3, 1×1 from one number a window's place and group.
    "CorrelationBlock": ({"window": (3, 3), "groups": 2}, 32 * (8 * 2 + 9 * 2 + 9 * 2 * 8)),
    # 3×3 to 4 channels; q, k, v; scores, embeddings of 3 offsets, 3 rows and 3 columns, and means; integration.
    "LocalAttentionBlock": (
        {
            "temporal_offsets": (-1, 0, 1),
            "window": (3, 3),
            "channels": 4,
            "strides": 1,
            "integration_channels": (5,),
        },
        32 * (9 * 8 * 4 + 3 * 16 + 2 * 27 * 4 + (3 * 4 + 6 * 2) + 9 * 4 * 5 + 5 * 8),
    ),
    # 1×1 to C / 4 and back, 3 numbers over time, 3×3; CMM with one channel: 2 → 1, 3×3, 1 → 2.
    "STMBlock": ({}, 32 * (8 * 2 + 3 * 2 + 9 * 2 * 2 + 2 * 8 + 2 + 9 + 2)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_blocks_by_hand(name):
    options, expected = BY_HAND[name]
    assert products(one(getattr(blocks, name)(**options), (2, 4, 4, 8))) == expected


@pytest.mark.parametrize("name", blocks.__all__)
def test_nothing_is_left_out(name):
    """Every layer with a kernel is seen to multiply, and every trainable number is counted once."""
    model = one(getattr(blocks, name)(), (3, 8, 8, 128))
    rows = count(model)
    assert [row.layer for row in rows if row.kind == NOT_COUNTED] == []
    assert sum(row.parameters for row in rows) == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def test_a_kernel_that_multiplies_unseen_is_told():
    class Scale(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(3, shape[-1]))

        def call(self, inputs):
            return ops.sum(inputs[..., None, :] * self.kernel, axis=-1)

    assert [row.kind for row in count(one(Scale(), (8, 4)))] == [NOT_COUNTED]


@pytest.mark.parametrize("layer", [layers.LSTM(4), lambda x: ops.einsum("bij,bkj,bkl->bil", x, x, x)])
def test_what_has_no_rule_is_refused(layer):
    with pytest.raises(CostError, match=r"rule|operands"):
        count(one(layer, (6, 3)))
    assert keras.Layer.__call__.__module__.startswith("keras.")  # and what was watched is put back


def test_sizes_that_are_not_known_are_refused():
    with pytest.raises(CostError, match=r"Received: shape=\(1, None, 3\)"):
        count(one(layers.Dense(2), (None, 3)))


def test_a_shared_layer_counts_its_weights_once():
    dense, inputs = layers.Dense(4, name="shared"), keras.Input((6, 4))
    rows = count(keras.Model(inputs, dense(dense(inputs))))
    assert [(row.layer, row.parameters, row.multiply_adds) for row in rows] == [("shared", 20, 2 * 6 * 4 * 4)]


def test_moving_statistics_are_no_parameters():
    (row,) = count(one(layers.BatchNormalization(), (8, 6, 3)))
    assert (row.kind, row.parameters, row.multiply_adds) == ("BatchNormalization", 6, 0)


def test_linear_in_frames():
    """TSN sees frames apart; only the head is once a clip."""
    model = build_model(config_of(backbone="resnet10", width=8, temporal="tsn"), 5)
    two, six = (count(model, frames, (48, 32)) for frames in (2, 6))
    assert [row.multiply_adds for row in six[:-1]] == [3 * row.multiply_adds for row in two[:-1]]
    assert two[-1].stage == six[-1].stage == "head" and two[-1] == six[-1]


def test_stages():
    """Rows stand in the order they run, inserted blocks are stages of their own, and the sums are of all rows."""
    insert = {"res2": "motion_squeeze", "res3": {"stm": {}}}
    found = cost(config_of(2, 64, backbone="resnet10", width=32, insert=insert), 7)
    names = ["conv1", "res2", "res2_motion_squeeze", "res3", "res3_stm", "res4", "res5", "head"]
    assert [stage["stage"] for stage in found["stages"]] == names
    for key in ("parameters", "multiply_adds"):
        assert found[key] == sum(stage[key] for stage in found["stages"]) == sum(row[key] for row in found["layers"])
    assert found["stages"][-1]["parameters"] == 256 * 7 + 7
    text = render_model(found)
    assert "res3_stm" in text and f"{found['multiply_adds']:,}" in text
    assert json.loads(json.dumps(found))["layers"][0]["layer"] == "conv1/conv"


def test_an_ensemble_costs_its_members():
    small = {"backbone": "resnet10", "width": 8, "temporal": "tsn"}
    alone = [cost(config_of(frames, 64, **small), 5) for frames in (2, 4)]
    both = cost(config_of(4, 64, ensemble=[{"frames": frames, **small} for frames in (2, 4)]), 5)
    assert both["multiply_adds"] == sum(each["multiply_adds"] for each in alone)
    assert both["parameters"] == sum(each["parameters"] for each in alone)
    stages = [stage["stage"] for stage in both["stages"]]
    assert stages == [f"member{number}_{stage['stage']}" for number in (0, 1) for stage in alone[0]["stages"]]


def test_weights_are_not_read():
    config = config_of(2, 64, backbone="resnet10", width=8, pretrained="nowhere.pth")
    assert cost(config, 5)["multiply_adds"]


@pytest.mark.parametrize(
    "network",
    [
        {"backbone": "resnet50", "temporal": "tsm", "insert": {"res3": "non_local"}},
        {"backbone": "resnet18", "temporal": "stm"},
        {"backbone": "mobilenet_v2", "temporal": "tsn"},
        {"backbone": "i3d", "temporal": "3d"},
    ],
    ids=lambda network: network["backbone"],
)
def test_as_tensorflow_counts(network):
    """The multiplying operations of the traced graph, by TensorFlow's own shapes: an independent count."""
    model = build_model(config_of(**network), 11)
    clip = tf.TensorSpec((1, 4, 64, 64, 3), "uint8")
    graph = tf.function(lambda frames: model(frames, training=False)).get_concrete_function(clip).graph
    expected = sum(_tensorflow_products(operation) for operation in graph.get_operations())
    assert products(model, frames=4, size=64) == expected


def _tensorflow_products(operation):
    sizes = [[int(side) for side in tensor.shape] for tensor in operation.inputs if tensor.shape.rank]
    if operation.type in ("Conv2D", "Conv3D"):
        return int(np.prod(operation.outputs[0].shape)) * int(np.prod(sizes[1][:-1]))
    if operation.type == "DepthwiseConv2dNative":
        return int(np.prod(operation.outputs[0].shape)) * int(np.prod(sizes[1][:2]))
    if operation.type in ("MatMul", "BatchMatMulV2"):
        turned = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
        return int(np.prod(operation.outputs[0].shape)) * sizes[0][-2 if turned else -1]
    assert not re.search("conv|matmul|einsum|while|map", operation.type, re.IGNORECASE), operation.type
    return 0


@pytest.fixture(scope="module")
def papers():
    return compare()


def test_papers_rows(papers):
    """Within 3 % of the multiply-adds and 2 % of the parameters, or the row says why not; no reason without need."""
    assert (TOLERANCE["multiply_adds"], TOLERANCE["parameters"]) == (0.03, 0.02)
    outside = {(row["row"], row["source"]) for row in papers if not row["within"]}
    assert outside == {(row["row"], row["source"]) for row in papers if row["reason"]}
    assert len(papers) == len(paper_rows()) > 60 and len(outside) < 10


def test_reasons_of_the_papers_rows(papers):
    """What the reasons say, computed."""
    found = {(row["row"], row["source"]): row for row in papers}
    pairs = (8 * 28 * 28) ** 2
    attention = found["TSM-R18 + NL", "SELFY 7a"]["multiply_adds"] + pairs * 2 * 64
    assert attention / 24.8e9 == pytest.approx(1, abs=0.002)
    module = found["TSM-R18 + CP", "SELFY 7a"]["multiply_adds"] + pairs * 128
    assert module / 1e9 == pytest.approx(25.1, abs=0.05)
    plain = found["TSM-R18", "SELFY 3a"]
    concat, add = (found[f"MSNet-R18 {name}", "MotionSqueeze 5"]["multiply_adds"] for name in ("concat", "add"))
    assert (concat - add) / 1e9 == pytest.approx(0.2, abs=0.05)
    assert plain["multiply_adds"] > 14.1e9 and plain["parameters"] / 1e6 == pytest.approx(11.3, abs=0.05)
    for name, mebi in (("STM-18", 10.8), ("STM-34", 20.6)):
        assert found[name, "STM 4"]["parameters"] / 2**20 == pytest.approx(mebi, abs=0.05)
    stm = {"modules": "cstm", "spatial": "channelwise", "stages": ["res4", "res5"]}
    late = cost(config_of(backbone="resnet50", temporal="stm", stm=stm))
    assert (late["multiply_adds"] / 1e9, late["parameters"] / 1e6) == pytest.approx((24.4, 13.28), rel=0.002)


def test_the_page_holds_the_table(papers):
    """docs/cost.md is what ``keras-stss cost --papers --markdown docs/cost.md`` writes."""
    assert markdown_papers(papers) in PAGE.read_text(encoding="utf-8")
    text = render_papers(papers)
    assert all(row["row"] in text and row["reason"] in text for row in papers)


def test_command(capsys):
    line = ["cost", "--config", "ss_v1", "model.backbone=resnet10", "model.width=8", "--size", "64", "--classes", "5"]
    assert main([*line, "--frames", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["frames"], found["height"], found["layers"][-1]["output_shape"]) == (2, 64, [1, 5])
    assert main(line) == 0
    text = capsys.readouterr().out
    assert "8 frames of 64×64" in text and "res3_selfy" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([], "either --config NAME or --papers"),
        (["--papers", "--config", "ss_v1"], "either --config NAME or --papers"),
        (["--papers", "--frames", "4"], "only --json and --markdown"),
        (["--config", "ss_v1", "--markdown", "page.md"], "--markdown goes with --papers"),
        (["--config", "ss_v1", "--size", "0"], "must be positive"),
    ],
)
def test_what_the_command_refuses(line, said, capsys):
    assert main(["cost", *line]) == 2
    assert said in capsys.readouterr().err
