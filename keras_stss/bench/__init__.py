"""The benchmark behind ``keras-stss bench``: measured against others in one run, never estimated.

This process only asks: :mod:`workers` starts one process for us and one for each environment of peers, :mod:`race`
visits their contestants in turn, and everybody's output is held to the same numbers before it counts.
"""

import time
from pathlib import Path

from keras_stss.bench import data, machine, networks, stss, training
from keras_stss.bench.workers import BenchError, Workers

KINDS = {"stss": stss, "block": networks, "model": networks, "data": data, "train": training}


def bench(kind, quick=False, peers=None, **options):
    """Runs one benchmark.

    Args:
        kind: "stss" (the operation), "block", "model", "data" (from files to batches) or "train" (the loop).
        quick: small shapes and few repetitions, to see that everything runs; its figures mean nothing.
        peers: folder that holds the peers' virtual environments (default: the checkout).
        **options: of the kind; see :func:`keras_stss.bench.networks.run`.

    Returns:
        Dictionary of JSON values: machine, versions, and the measured rows; :func:`keras_stss.bench.tables.render`
        turns it into tables.

    Raises:
        BenchError: for a folder of peers that is not there, or options that the kind does not take.
    """
    if peers is not None and not Path(peers).is_dir():
        raise BenchError(f"no folder {peers} that could hold the peers' virtual environments")
    if options and kind != "model":
        raise BenchError(f"{', '.join(options)} can be chosen for the benchmark of kind model only")
    start = time.perf_counter()
    with Workers(peers) as workers:
        workers.start("ours")
        found = KINDS[kind].run(workers, kind, quick, **options)
        versions = workers.versions()
    return {
        "kind": kind,
        "quick": quick,
        "machine": machine.describe(),
        "versions": versions,
        "seconds": round(time.perf_counter() - start, 1),
        **found,
    }
