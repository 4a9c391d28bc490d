"""Rows of the papers' tables that have a cost column, as data."""

from typing import Any, NamedTuple


class PaperRow(NamedTuple):
    """One row of a paper's table.

    ``network`` is the ``model`` section of a config; ``giga`` and ``mega`` are the paper's "FLOPs", which are
    multiply-adds, in 10⁹, and its parameters in 10⁶, None where it gives none; ``frames`` has several numbers for an
    ensemble; ``reason`` says why ours is another figure.
    """

    name: str
    source: str
    network: dict[str, Any]
    giga: float | None
    mega: float | None = None
    frames: tuple[int, ...] = (8,)
    classes: int = 174
    reason: str = ""


#: Reasons why a figure of ours is another.
NON_LOCAL = (
    "the paper gives no channels; half of the input's, as in the code that it names, make 0.2 G of convolutions and "
    "5.0 G of products between activations. Those counted twice, as two operations each, give the paper's 24.8 G"
)
CORRESPONDENCE = (
    "MotionSqueeze, Table 8, has 20.4 G for the same module; its 5.0 G of products between activations counted twice, "
    "as in the row of NL, give 25.1 G"
)
SEVERAL = (
    "the steps of the kernel soft-argmax on single values, which are not counted here, are in the paper's figures: "
    "KS costs 0.1 G more than S in Table 3, on a 28×28 map, and so 0.5 G on the three maps of this row"
)
MOTION_ONLY = "the paper's figure is below the 14.6 G of the backbone alone, of which no layer is left out"
CONCAT = (
    "the convolution that the paper names, 1×1×1 from 2C to C channels, has 0.2 G on this map; the paper's row costs "
    "0.8 G more than add"
)
PLAIN_RESNET = (
    "the paper's parameters are below the {} M of {} alone, to which STM adds some; counted in units of 2²⁰ ours are {}"
)
CHANNELWISE_2D = (
    "this is the row as the paper words it; its figures fit blocks of that kind in res4 and res5 alone, with residual "
    "blocks before: 24.4 G and 13.28 M"
)


def paper_rows():
    """All rows, a list of :class:`PaperRow`."""
    return [*_selfy_main(), *_selfy_ablations(), *_motion_squeeze_main(), *_motion_squeeze_ablations(), *_stm()]


def _network(depth, temporal="tsm", **insert):
    return {"backbone": f"resnet{depth}", "temporal": temporal, "insert": insert}


def _selfy(depth, temporal="tsm", **options):
    return _network(depth, temporal, res3={"selfy": options})


def _squeeze(depth, stages=("res3",), **options):
    return _network(depth, **{stage: {"motion_squeeze": options} for stage in stages})


def _ensemble(**members):
    """Members by their frames: frames8=…, frames16=…."""
    return {"ensemble": [{"frames": int(name.removeprefix("frames")), **network} for name, network in members.items()]}


LONG = (-4, -3, -2, -1, 0, 1, 2, 3, 4)


def _selfy_main():
    table = "SELFY 1"
    eight, sixteen = _selfy(50), _selfy(50, temporal_offsets=LONG)
    return [
        PaperRow("TSN-R50", table, _network(50, "tsn"), 33),
        PaperRow("SELFYNet-R50", table, _selfy(50, "tsn"), 37),
        PaperRow("TSM-R50", table, _network(50), 65, frames=(16,)),
        PaperRow("SELFYNet-TSM-R50", table, eight, 37),
        PaperRow("SELFYNet-TSM-R50", table, sixteen, 77, frames=(16,)),
        PaperRow("SELFYNet-TSM-R50 EN", table, _ensemble(frames8=eight, frames16=sixteen), 114, frames=(8, 16)),
    ]


def _selfy_ablations():
    offsets = {
        "{0}": ((0,), 15.3),
        "{1}": ((1,), 15.3),
        "{-1..1}": ((-1, 0, 1), 16.3),
        "{-2..2}": ((-2, -1, 0, 1, 2), 17.3),
        "{-3..3}": ((-3, -2, -1, 0, 1, 2, 3), 18.3),
    }
    rows = []
    for temporal in ("tsn", "tsm"):
        rows.append(PaperRow(f"{temporal.upper()}-R18", "SELFY 3a", _network(18, temporal), 14.6))
        rows += [
            PaperRow(
                f"SELFYNet-{temporal.upper()}-R18 {name}",
                "SELFY 3a",
                _selfy(18, temporal, temporal_offsets=chosen),
                giga,
            )
            for name, (chosen, giga) in offsets.items()
        ]
    rows += [
        PaperRow("TSM-R18 + NL", "SELFY 7a", _network(18, res3="non_local"), 24.8, reason=NON_LOCAL),
        PaperRow("TSM-R18 + CP", "SELFY 7a", _network(18, res3="cp"), 25.6, reason=CORRESPONDENCE),
    ]
    windows = {5: 17.1, 9: 17.3, 13: 18.4, 17: 19.8}
    rows += [
        PaperRow(f"SELFYNet-TSM-R18 {side}×{side}", "SELFY 7d", _selfy(18, window=(side, side)), giga)
        for side, giga in windows.items()
    ]
    return rows


def _motion_squeeze_main():
    table, eight = "MotionSqueeze 1", _squeeze(50)
    both = _ensemble(frames16=_network(50), frames8=_network(50))
    return [
        PaperRow("TSM-R50 (400 classes)", table, _network(50), 33, 24.3, classes=400),
        PaperRow("TSM-R50 EN (400 classes)", table, both, 98, 48.6, (16, 8), 400),
        PaperRow("MSNet-R50 (400 classes)", table, eight, 34, 24.6, classes=400),
        PaperRow("MSNet-R50 (400 classes)", table, eight, 67, 24.6, (16,), 400),
        PaperRow(
            "MSNet-R50 EN (400 classes)", table, _ensemble(frames16=eight, frames8=eight), 101, 49.2, (16, 8), 400
        ),
    ]


def _motion_squeeze_ablations():
    def transform(*kernels):
        channels = (16, 32, 64)[: len(kernels) - 1]
        return _squeeze(50, transform="conv", transform_kernels=kernels, transform_channels=channels)

    rows = [
        ("TSM-R18", "3", _network(18), 14.6, ""),
        ("MSNet-R18 S", "3", _squeeze(18, sigma=None, confidence=False), 14.8, ""),
        ("MSNet-R18 KS", "3", _squeeze(18, confidence=False), 14.9, ""),
        ("MSNet-R18 KS+CM", "3", _squeeze(18), 14.9, ""),
        ("MSNet-R18 KS+CM+BD", "3", _squeeze(18, backward=True), 15.1, ""),
        ("MSNet-R18 at res2", "4", _squeeze(18, ["res2"]), 15.6, ""),
        ("MSNet-R18 at res3", "4", _squeeze(18), 14.9, ""),
        ("MSNet-R18 at res4", "4", _squeeze(18, ["res4"]), 14.7, ""),
        ("MSNet-R18 at res5", "4", _squeeze(18, ["res5"]), 14.6, ""),
        ("MSNet-R18 at res2, 3, 4", "4", _squeeze(18, ["res2", "res3", "res4"]), 16.0, SEVERAL),
        ("MSNet-R18 MS only", "5", _squeeze(18, fusion="none"), 14.1, MOTION_ONLY),
        ("MSNet-R18 multiply", "5", _squeeze(18, fusion="multiply"), 14.9, ""),
        ("MSNet-R18 concat", "5", _squeeze(18, fusion="concat"), 15.7, CONCAT),
        ("MSNet-R18 add", "5", _squeeze(18), 14.9, ""),
        ("TSM-R50", "7", _network(50), 33.1, ""),
        ("MSNet-R50 1×(1,1)", "7", transform(1), 33.4, ""),
        ("MSNet-R50 1×(3,3)", "7", transform(3), 33.5, ""),
        ("MSNet-R50 4×(3,3)", "7", transform(3, 3, 3, 3), 35.8, ""),
        ("MSNet-R50 separable", "7", _squeeze(50), 33.7, ""),
        ("TSM-R18 + CP", "8", _network(18, res3="cp"), 20.4, ""),
        ("MSNet-R18", "8", _squeeze(18), 15.0, ""),
    ]
    return [
        PaperRow(name, f"MotionSqueeze {table}", network, giga, reason=why) for name, table, network, giga, why in rows
    ]


def _stm_network(depth, **options):
    return {"backbone": f"resnet{depth}", "temporal": "stm", "stm": options}


def _stm():
    ordinary = _stm_network(50, modules="cstm", temporal="ordinary", spatial="ordinary")
    channelwise = _stm_network(50, modules="cstm", spatial="channelwise")
    rows = [
        ("TSM-R50 (400 classes)", "4", _network(50), 32.9, 24.3, 8, 400, ""),
        ("TSM-R50 (400 classes)", "4", _network(50), 65.8, 24.3, 16, 400, ""),
        ("TSN-R50", "4", _network(50, "tsn"), 32.9, 23.8, 8, 174, ""),
        ("STM-18", "4", _stm_network(18), 14.6, 11.0, 8, 174, PLAIN_RESNET.format(11.3, "ResNet-18", 10.8)),
        ("STM-34", "4", _stm_network(34), 29.4, 20.5, 8, 174, PLAIN_RESNET.format(21.4, "ResNet-34", 20.6)),
        ("STM-50", "4", _stm_network(50), 33.3, 24.0, 8, 174, ""),
        ("STM-50", "4", _stm_network(50), 66.5, 24.0, 16, 174, ""),
        ("CSTM channel-wise 1D", "10", _stm_network(50, modules="cstm"), 32.93, 23.88, 8, 174, ""),
        ("CSTM channel-wise 1D, 2D", "10", channelwise, 24.05, 13.28, 8, 174, CHANNELWISE_2D),
        ("CSTM all ordinary", "10", ordinary, 40.59, 27.64, 8, 174, ""),
        ("CMM channel-wise", "10", _stm_network(50, modules="cmm"), 32.95, 23.95, 8, 174, ""),
        ("CMM ordinary", "10", _stm_network(50, modules="cmm", motion="ordinary"), 33.5, 24.25, 8, 174, ""),
    ]
    return [
        PaperRow(name, f"STM {table}", network, giga, mega, (frames,), classes, why)
        for name, table, network, giga, mega, frames, classes, why in rows
    ]
