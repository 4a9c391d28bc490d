#!/usr/bin/env python3
"""Builds, checks and times the CUDA kernels beside PyTorch formulations: needs a GPU, nvcc and PyTorch, nothing else.

    python benchmarks/gpu/stss_gpu.py              everything, within --budget seconds
    python benchmarks/gpu/stss_gpu.py --sanitize   also compute-sanitizer (memcheck, racecheck), where it is installed
    python benchmarks/gpu/stss_gpu.py --check-only no timing

Exit code: 0; 1 where a result is wrong; 2 where there is no GPU, nvcc or PyTorch.
"""

import argparse
import datetime
import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEVICE = "cuda"
sys.path.insert(0, str(HERE))

#: (B, T, H, W, C), offsets, window
SHAPES = {
    "SELFY": ((4, 8, 14, 14, 128), (-2, -1, 0, 1, 2), (9, 9)),
    "MotionSqueeze": ((1, 8, 28, 28, 64), (1,), (15, 15)),
    "SELFY, 32 clips": ((32, 8, 14, 14, 128), (-2, -1, 0, 1, 2), (9, 9)),
    "MotionSqueeze, 32 clips": ((32, 8, 28, 28, 64), (1,), (15, 15)),
}
#: Changes to "SELFY, 32 clips", one at a time.
GROWTH = {
    "B": [{"B": count} for count in (1, 4, 16, 64)],
    "T": [{"T": count} for count in (4, 16, 32)],
    "C": [{"C": count} for count in (16, 64, 100, 256, 512)],
    "map": [{"H": side, "W": side} for side in (7, 28)],
    "window": [{"window": (side, side)} for side in (3, 5, 15)],
    "L": [{"offsets": tuple(range(-reach, reach + 1))} for reach in (0, 1, 4)],
}
#: Clips that the blocks get: (B, T, H, W, C).
CLIPS = (8, 8, 28, 28, 128)
#: What the checks compare: shape, offsets, window.
CHECKS = [
    ((1, 2, 8, 8, 16), (0, 1), (9, 9)),
    ((2, 3, 14, 14, 128), (-2, -1, 0, 1, 2), (9, 9)),
    ((1, 3, 28, 28, 64), (1,), (15, 15)),
    ((2, 2, 5, 11, 7), (1, -5), (3, 5)),
    ((1, 2, 19, 9, 200), (1,), (5, 3)),
    ((1, 1, 3, 2, 5), (0,), (7, 21)),
    ((1, 2, 30, 33, 10), (1,), (11, 35)),
]
SMALL_CHECKS = [CHECKS[0], CHECKS[3], ((1, 2, 9, 10, 132), (1,), (5, 11))]
#: Largest ‖found − wanted‖ / ‖wanted‖ beside float64 over the same stored values: forward, gradient.
TOLERANCE = {"float32": (5e-6, 5e-6), "float16": (1e-3, 2e-3), "bfloat16": (8e-3, 1.6e-2)}


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=420, help="seconds after which nothing new is begun (420)")
    parser.add_argument("--dtypes", nargs="+", default=list(TOLERANCE), choices=list(TOLERANCE), metavar="DTYPE")
    parser.add_argument("--output", type=Path, help="JSON file (results/GPU-DATE.json beside this script)")
    parser.add_argument("--check-only", action="store_true", help="build and check, no timing")
    parser.add_argument("--sanitize", action="store_true", help="also run the checks under compute-sanitizer")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-flush", action="store_true", help="leave what is in the L2 cache between repeats")
    parser.add_argument("--repeats", type=int, default=50, help="of each timing (50)")
    parser.add_argument("--library", type=Path, help=argparse.SUPPRESS)  # built already: the sanitizer's run
    return parser.parse_args(arguments)


def missing():
    """Why nothing can run here, or None."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    if not shutil.which("nvcc") and not Path("/usr/local/cuda/bin/nvcc").exists():
        return "nvcc is not installed"
    return None


def check(operations, dtypes, cases):
    """Errors beside float64 for every case and dtype, and whether a second run gives the same bits."""
    import formulations
    import torch

    rows = []
    for shape, offsets, window in cases:
        for dtype in dtypes:
            for cosine in (True, False):
                for name, operation in operations.items():
                    torch.manual_seed(sum(shape))
                    scale = 1.0 if cosine or name == "stss" else 1.0 / shape[-1] ** 0.5
                    features = (scale * torch.randn(shape, device=DEVICE)).to(getattr(torch, dtype)).requires_grad_()
                    wide = features.detach().double().requires_grad_()
                    # A soft temperature: with 0.01 the rounding of a score is a hundred times as large in the exponent.
                    settings = () if name == "stss" else (5.0, 0.1)
                    slow = formulations.dense_band if name == "stss" else _double_displacement
                    wanted = slow(wide, offsets, window, cosine, *settings)
                    found = operation(features, offsets, window, cosine, *settings)
                    upstream = torch.randn_like(found)
                    slopes = [torch.autograd.grad(found, features, upstream, retain_graph=True)[0] for _ in range(2)]
                    slope = torch.autograd.grad(wanted, wide, upstream.double())[0]
                    again = operation(features, offsets, window, cosine, *settings)
                    case = {"operation": name, "shape": shape, "window": window, "dtype": dtype, "cosine": cosine}
                    errors = _error(found, wanted), _error(slopes[0], slope)
                    same = torch.equal(found, again) and torch.equal(*slopes)
                    # The softmax makes rounded scores matter more.
                    limits = TOLERANCE[dtype][0], TOLERANCE[dtype][1] * (1 if name == "stss" else 8)
                    right = same and all(error <= limit for error, limit in zip(errors, limits, strict=True))
                    rows.append({**case, "forward": errors[0], "gradient": errors[1], "same": same, "right": right})
    return rows


def _double_displacement(features, offsets, window, cosine, sigma, temperature):
    import formulations

    return formulations.displacement(features, offsets, window, cosine, sigma, temperature)


def _error(found, wanted):
    wanted = wanted.detach()
    return float((found.detach().double() - wanted).norm() / wanted.norm().clamp(min=1e-30))


class Timer:
    """Median device time of a function, as a CUDA graph where it can be captured, with the L2 cache overwritten."""

    def __init__(self, repeats, flush):
        import torch

        self.torch = torch
        self.repeats = repeats
        size = torch.cuda.get_device_properties(0).L2_cache_size if flush else 0
        self.scratch = torch.empty(max(2 * size, 64 << 20), dtype=torch.uint8, device=DEVICE)

    def __call__(self, function):
        """{"ms": median, "spread": (10th, 90th percentile), "graph": captured or not, "peak_mb": beyond before}."""
        torch = self.torch
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                kept = function()  # noqa: F841 - the graph's memory lives as long as its outputs
            run = graph.replay
        except RuntimeError:
            graph, run = None, function
        times = []
        for number in range(self.repeats + 5):
            self.scratch.zero_()
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            run()
            events[1].record()
            if number >= 5:
                times.append(events)
        torch.cuda.synchronize()
        times = sorted(first.elapsed_time(last) for first, last in times)
        spread = times[len(times) // 10], times[-1 - len(times) // 10]
        return {"ms": times[len(times) // 2], "spread": spread, "graph": graph is not None, "peak_mb": round(peak, 1)}


def measured_rates(timer, dtypes):
    """Copy rate in GB/s (bytes read and written), and multiply-adds per second of a matrix product, by dtype."""
    import torch

    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    rates = {"copy_gb_per_s": 2 * source.numel() / timer(functools.partial(target.copy_, source))["ms"] / 1e6}
    for dtype in dtypes:
        sides = [torch.randn(4096, 4096, device=DEVICE, dtype=getattr(torch, dtype)) for _ in range(2)]
        rates[f"{dtype}_gmac_per_s"] = 4096**3 / timer(lambda sides=sides: sides[0] @ sides[1])["ms"] / 1e6
    return rates


def floors(shape, offsets, window, dtype, rates):
    """Least milliseconds: every byte of inputs and outputs moved once; the band's multiply-adds at the matrix rate."""
    batch, frames, height, width, channels = shape
    size = 4 if dtype == "float32" else 2
    positions = batch * frames * height * width
    features, volume = positions * channels * size, positions * len(offsets) * window[0] * window[1] * size

    def pairs(side, reach):
        return sum(max(side - abs(step), 0) for step in range(-(reach // 2), reach // 2 + 1))

    met = sum(max(frames - abs(offset), 0) for offset in offsets)
    work = batch * met * pairs(height, window[0]) * pairs(width, window[1]) * channels
    copy, rate = rates["copy_gb_per_s"] * 1e6, rates[f"{dtype}_gmac_per_s"] * 1e6
    return {
        "bytes_forward": (features + volume) / copy,
        "bytes_both": (3 * features + 2 * volume) / copy,
        "arithmetic_forward": work / rate,
        "arithmetic_both": 3 * work / rate,
    }


def race(timer, functions, case, deadline, module=None):
    """Forward and forward+backward of every function of one input; those that fail or come too late say so."""
    import torch

    rows = {}
    for name, (function, features) in functions.items():
        if time.monotonic() > deadline:
            rows[name] = {"left out": "the time budget was spent"}
            continue
        try:
            parameters = [features, *(module[name].parameters() if module else [])]

            def both(function=function, features=features, parameters=parameters):
                output = function(features)
                return output, torch.autograd.grad(output, parameters, torch.ones_like(output))

            def forward(function=function, features=features):
                with torch.no_grad():
                    return function(features)

            rows[name] = {"forward": timer(forward), "both": timer(both)}
        except Exception as error:
            rows[name] = {"left out": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"}
        torch.cuda.empty_cache()
    print(_table(case, rows), flush=True)
    return rows


def _table(case, rows):
    lines = [f"\n{case}", f"{'':44}{'forward':>10}{'both':>10}  ms   (peak MB)"]
    for name, row in rows.items():
        if "left out" in row:
            lines.append(f"{name:44}  {row['left out']}")
        elif "forward" in row and isinstance(row["forward"], dict):
            peak = f"{row['forward']['peak_mb']:.0f}, {row['both']['peak_mb']:.0f}"
            lines.append(f"{name:44}{row['forward']['ms']:10.4f}{row['both']['ms']:10.4f}       ({peak})")
    return "\n".join(lines)


def race_operations(ours, timer, rates, options, deadline):
    """The operation beside its rivals, over the headline shapes."""
    import formulations
    import torch

    found = []
    rivals = dict(formulations.STSS)
    sampler = formulations.correlation_sampler()
    if sampler:
        rivals["spatial-correlation-sampler"] = sampler
    for dtype in options.dtypes:
        for label, (shape, offsets, window) in SHAPES.items():
            features = torch.randn(shape, device=DEVICE, dtype=getattr(torch, dtype), requires_grad=True)

            def bind(stss, offsets=offsets, window=window):
                return lambda inputs: stss(inputs, offsets, window)

            functions = {"keras_stss": (bind(ours["stss"]), features)}
            functions |= {name: (bind(rival), features) for name, rival in rivals.items()}
            if not options.no_compile and "clips" not in label:
                for name in ("dense product and band", "row products"):
                    functions[f"torch.compile, {name}"] = (torch.compile(bind(rivals[name]), dynamic=False), features)
            floor = floors(shape, offsets, window, dtype, rates)
            case = f"{label} {shape}, {len(offsets)} offsets, {window[0]}x{window[1]}, {dtype}"
            rows = race(timer, functions, case, deadline)
            print("  least, ms: " + ", ".join(f"{name} {value:.4f}" for name, value in floor.items()), flush=True)
            found.append({"case": label, "dtype": dtype, "floors_ms": floor, "rows": rows})
    return found


def growth(ours, timer, rates, options, deadline):
    """How our cost grows with one size at a time."""
    import torch

    (batch, frames, height, width, channels), offsets, window = SHAPES["SELFY, 32 clips"]
    base = {"B": batch, "T": frames, "H": height, "W": width, "C": channels, "offsets": offsets, "window": window}
    found = []
    for dtype in options.dtypes:
        for change in [{}, *(change for changes in GROWTH.values() for change in changes)]:
            if time.monotonic() > deadline:
                break
            sizes = {**base, **change}
            shape = tuple(sizes[name] for name in "BTHWC")
            features = torch.randn(shape, device=DEVICE, dtype=getattr(torch, dtype), requires_grad=True)
            call = lambda features, sizes=sizes: ours["stss"](features, sizes["offsets"], sizes["window"])  # noqa: E731
            rows = race(timer, {"keras_stss": (call, features)}, f"{change or 'base'}, {dtype}", deadline)
            floor = floors(shape, sizes["offsets"], sizes["window"], dtype, rates)
            found.append({"change": change, "dtype": dtype, "floors_ms": floor, "rows": rows})
    return found


def race_displacement(ours, timer, options, deadline):
    """The displacement operation beside volume, softmax and expectation in PyTorch."""
    import formulations
    import torch

    found = []
    for dtype in options.dtypes:
        for label in ("MotionSqueeze", "MotionSqueeze, 32 clips"):
            shape, offsets, window = SHAPES[label]
            features = torch.randn(shape, device=DEVICE, dtype=getattr(torch, dtype), requires_grad=True)
            plain = lambda f, o=offsets, w=window: formulations.displacement(f, o, w)  # noqa: E731
            functions = {"keras_stss": (lambda f, o=offsets, w=window: ours["displacement"](f, o, w), features)}
            functions["PyTorch"] = (plain, features)
            if not options.no_compile:
                functions["torch.compile"] = (torch.compile(plain, dynamic=False), features)
            rows = race(timer, functions, f"displacement, {label} {shape}, {dtype}", deadline)
            found.append({"case": label, "dtype": dtype, "rows": rows})
    return found


def race_blocks(ours, timer, options, deadline):
    """Whole blocks, with our operation and with PyTorch's formulation, eager and compiled."""
    import formulations
    import torch

    found = []
    blocks = {
        "SELFY": (formulations.SelfyBlock, ours["stss"], formulations.dense_band),
        "MotionSqueeze": (formulations.MotionSqueezeBlock, ours["displacement"], formulations.displacement),
    }
    for dtype in (d for d in options.dtypes if d != "float16"):
        for label, (block, mine, theirs) in blocks.items():
            batch, frames, height, width, channels = CLIPS
            shape = (batch * frames, channels, height, width)
            inputs = torch.randn(shape, device=DEVICE, dtype=getattr(torch, dtype))
            inputs = inputs.to(memory_format=torch.channels_last).requires_grad_()
            modules, functions = {}, {}
            for name, operation in (("keras_stss", mine), ("PyTorch", theirs)):
                module = block(operation, frames, channels).to(
                    DEVICE, getattr(torch, dtype), memory_format=torch.channels_last
                )
                modules[name] = module
                functions[name] = (module, inputs)
                if not options.no_compile:
                    modules[f"{name}, torch.compile"] = module
                    functions[f"{name}, torch.compile"] = (torch.compile(module, dynamic=False), inputs)
            rows = race(timer, functions, f"{label} block {CLIPS}, {dtype}", deadline, modules)
            found.append({"block": label, "dtype": dtype, "rows": rows})
    return found


def sanitize(library, dtypes):
    """compute-sanitizer over the small checks: tool → {"errors", "tail"} or why it was left out."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return {"left out": "compute-sanitizer is not installed"}
    found = {}
    for tool in ("memcheck", "racecheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, str(Path(__file__).resolve())]
        command += ["--check-only", "--library", str(library), "--dtypes", *dtypes]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=200)
            found[tool] = {"code": done.returncode, "tail": (done.stdout + done.stderr).splitlines()[-4:]}
        except subprocess.TimeoutExpired:
            found[tool] = {"left out": "not ready after 200 s"}
        print(f"compute-sanitizer {tool}: {found[tool]}", flush=True)
    return found


def describe_machine():
    import torch

    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, text=True) if shutil.which("nvidia-smi") else None
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": list(torch.cuda.get_device_capability()),
        "multiprocessors": properties.multi_processor_count,
        "driver": asked.stdout.strip() if asked else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def main(arguments=None):
    options = parse(arguments)
    reason = missing()
    if reason:
        print(f"stss_gpu: needs an NVIDIA GPU, nvcc and PyTorch with CUDA: {reason}", file=sys.stderr)
        return 2
    import kernels
    import torch

    deadline = time.monotonic() + options.budget
    torch.backends.cuda.matmul.allow_tf32 = False
    machine = describe_machine()
    print(machine)
    with tempfile.TemporaryDirectory() as folder:
        library, report = options.library, ""
        if library is None:
            library, report = kernels.build(folder, machine["capability"])
        stss, displacement = kernels.operations(kernels.Library(library))
        ours = {"stss": stss, "displacement": displacement}
        checks = check(ours, options.dtypes, SMALL_CHECKS if options.library else CHECKS)
        wrong = [row for row in checks if not row["right"]]
        worst = {d: max(max(r["forward"], r["gradient"]) for r in checks if r["dtype"] == d) for d in options.dtypes}
        print(f"checked {len(checks)} cases against float64, {len(wrong)} wrong; largest relative error {worst}")
        for row in wrong:
            print("WRONG", row)
        result = {"machine": machine, "spills": sorted(map(int, re.findall(r"(\d+) bytes spill", report)))[-1:]}
        result |= {"checks": checks}
        if options.sanitize and not options.library:
            result["sanitizer"] = sanitize(library, options.dtypes)
        if not options.check_only:
            timer = Timer(options.repeats, not options.no_flush)
            result["rates"] = rates = measured_rates(timer, options.dtypes)
            print(rates)
            result["flush"] = not options.no_flush
            result["operation"] = race_operations(ours, timer, rates, options, deadline)
            result["displacement"] = race_displacement(ours, timer, options, deadline)
            result["blocks"] = race_blocks(ours, timer, options, deadline)
            result["growth"] = growth(ours, timer, rates, options, deadline)
        if not options.library:
            name = re.sub(r"[^A-Za-z0-9]+", "-", machine["gpu"]) + "-" + machine["date"][:10] + ".json"
            target = options.output or HERE / "results" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(f"\nwrote {target}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
