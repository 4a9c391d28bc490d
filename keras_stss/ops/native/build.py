"""Builds the native library from ``keras_stss/ops/cc``: ``python -m keras_stss.ops.native.build``.

It needs a C++ compiler and the TensorFlow that is to load it; CUDA kernels are built where nvcc is found. Environment:

- ``CXX``: the compiler (default: g++, then clang++);
- ``KERAS_STSS_CUDA=0``: no CUDA kernels; ``CUDA_HOME``: where the toolkit is, if nvcc is not on the path;
- ``KERAS_STSS_CUDA_ARCHS=80,90``: GPU architectures to make machine code for, and PTX of the highest for newer ones.

Imports nothing but the standard library, because setup.py runs it before anything else is there.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent / "cc"
LIBRARY = "_native.so"
RECORD = "_native.json"

#: Files named *_cpu.cc are compiled once for each of these; which one runs is chosen at run time (cc/dispatch.h).
INSTRUCTION_SETS = {
    "plain": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
}
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", "-Wall"]
NVCC_FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
ARCHITECTURES = "80,90"

_ASK_TENSORFLOW = """
import json, tensorflow as tf
flags = [tf.__version__, tf.sysconfig.get_compile_flags(), tf.sysconfig.get_link_flags()]
print("\\n" + json.dumps(flags))
"""


class BuildError(RuntimeError):
    """Why there is no native library, in one line; ``log`` is what the tool that failed wrote."""

    def __init__(self, reason, log=""):
        super().__init__(reason)
        self.log = log


class TensorFlow(NamedTuple):
    """A TensorFlow installation, and the environment in which this interpreter finds it."""

    version: str
    compile_flags: list
    link_flags: list
    environment: dict


class Cuda(NamedTuple):
    """A CUDA toolkit, with the GPU architectures to build for."""

    nvcc: str
    include_flags: list
    link_flags: list
    architectures: list  # "80", "90"

    @property
    def targets(self):
        """What the library will hold: machine code for each architecture, and PTX of the highest."""
        return [*(f"sm_{name}" for name in self.architectures), f"compute_{self.architectures[-1]}"]


def build(folder=HERE, tensorflow=None):
    """Compiles and links the library into a folder, beside a record of what it was built for.

    A CUDA part that cannot be built is left out, and the record says why.

    Args:
        folder: where ``_native.so`` and ``_native.json`` go. What is there is replaced once the new ones are whole.
        tensorflow: :class:`TensorFlow` to build for (default: :func:`find_tensorflow`).

    Returns:
        The record: dict with ``tensorflow``, ``cuda`` (list of targets), ``cuda_reason``, ``instruction_sets``,
        ``compiler``, ``sources`` and ``bytes``.

    Raises:
        BuildError: where it cannot be built.
    """
    folder = Path(folder)
    if not os.access(folder, os.W_OK):
        raise BuildError(f"{folder} cannot be written to: run this as the user who installed keras_stss")
    compiler = find_compiler()
    tensorflow = tensorflow or find_tensorflow()
    if tensorflow is None:
        raise BuildError(f"TensorFlow is not installed for {sys.executable}")
    architectures = _asked_architectures()
    cuda, cuda_reason = find_cuda(architectures)
    record = {
        "tensorflow": tensorflow.version,
        "cuda": [],
        "cuda_reason": cuda_reason,
        "instruction_sets": list(_instruction_sets()),
        "compiler": _run([*compiler, "--version"]).splitlines()[0],
        "sources": sources_digest(),
    }
    library = folder / f"{LIBRARY}.{os.getpid()}"  # in the folder itself: a temporary one may not allow execution
    try:
        with tempfile.TemporaryDirectory() as scratch:
            if cuda:
                try:
                    _make(library, scratch, compiler, tensorflow, cuda)
                    record["cuda"] = cuda.targets
                except _CudaError as error:
                    cuda, record["cuda_reason"] = None, str(error)
                    print(f"CUDA kernels are left out: {error}\n{error.log}", file=sys.stderr)
            if not cuda:
                _make(library, scratch, compiler, tensorflow, None)
        record["bytes"] = library.stat().st_size
        os.replace(library, folder / LIBRARY)
    finally:
        library.unlink(missing_ok=True)
    _write_record(folder, record)
    return record


def build_or_record(folder=HERE):
    """Like :func:`build`, but for an installation, which goes on without the library: the record then says why."""
    folder = Path(folder)
    try:
        if os.environ.get("KERAS_STSS_NATIVE") == "0":
            if not (folder / LIBRARY).is_file():
                _write_record(folder, {"error": "KERAS_STSS_NATIVE=0 left it out of the installation"})
            return read_record(folder)
        return build(folder)
    except (BuildError, OSError) as error:
        if os.access(folder, os.W_OK):
            (folder / LIBRARY).unlink(missing_ok=True)
            _write_record(folder, {"error": str(error)})
        print(getattr(error, "log", ""), file=sys.stderr)
        return {"error": str(error)}


def read_record(folder=HERE):
    """The record beside the library, empty where there is none; raises BuildError for one that cannot be read."""
    path = Path(folder) / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BuildError(f"{path} cannot be read ({error})") from None
    if not isinstance(record, dict):
        raise BuildError(f"{path} is no record of a build")
    return record


def check(record, tensorflow, folder=HERE):
    """Raises BuildError where the library that a record belongs to must not be loaded.

    Args:
        record: of :func:`read_record`.
        tensorflow: version of the TensorFlow that is to load it.
        folder: where the library is.
    """
    library = Path(folder) / LIBRARY
    if not record:
        raise BuildError("it has not been built")
    if "error" in record:
        raise BuildError(f"its build failed: {record['error']}")
    if not library.is_file():
        raise BuildError(f"{library} is gone")
    if record.get("tensorflow") != tensorflow:
        raise BuildError(f"it was built for TensorFlow {record.get('tensorflow')}, and this is {tensorflow}")
    # A part of a library takes the process that loads it down.
    if record.get("bytes") != library.stat().st_size:
        raise BuildError(f"{library} has {library.stat().st_size} bytes instead of {record.get('bytes')}")
    # One that is older than its sources could compute something else than they say.
    if SOURCES.is_dir() and record.get("sources") != sources_digest():
        raise BuildError("its sources have changed since it was built")


def describe(record):
    """A record in one line."""
    if not record or "error" in record:
        reason = record.get("error", "it has not been built")
        return f"no native library: {reason}; keras_stss works without it, more slowly"
    cuda = ", ".join(record["cuda"]) or f"none ({record['cuda_reason']})"
    return (
        f"native library for TensorFlow {record['tensorflow']}; CPU: {', '.join(record['instruction_sets'])}; "
        f"CUDA: {cuda}"
    )


def _show():
    """What there is, in one line."""
    try:
        record = read_record()
        installed = find_tensorflow() if record and "error" not in record else None
        if installed:
            check(record, installed.version)
    except BuildError as error:
        record = {"error": str(error)}
    return describe(record)


def sources_digest():
    """Hash of all that the library is made from."""
    digest = hashlib.sha256(repr((INSTRUCTION_SETS, FLAGS, NVCC_FLAGS)).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cc", ".h", ".cu", ".cuh"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def find_compiler():
    """The C++ compiler as the beginning of a command line; raises BuildError where there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named and not shutil.which(named[0]):
        raise BuildError(f"the C++ compiler that CXX names is not there: {named[0]}")
    found = shutil.which("g++") or shutil.which("clang++")
    if not named and not found:
        raise BuildError("no C++ compiler was found (g++ or clang++, or one that CXX names)")
    return named or [found]


def find_tensorflow():
    """The :class:`TensorFlow` of this interpreter, or None.

    pip builds apart from what is installed: it shows this interpreter other folders through PYTHONPATH. TensorFlow is
    looked for there first, where pip has put it only if setup.py asked for it, and then among what is installed.
    """
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    return _tensorflow_in(quiet) or installed_tensorflow()


def installed_tensorflow():
    """The :class:`TensorFlow` that is installed for this interpreter, whatever pip shows it while it builds."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE")
    plain = {key: value for key, value in os.environ.items() if key not in hidden}
    return _tensorflow_in({**plain, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""})


def _tensorflow_in(environment):
    # The working directory may hold a folder of the same name; "-c" would look there first.
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-c", _ASK_TENSORFLOW]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=empty)
    if done.returncode:
        return None
    version, compile_flags, link_flags = json.loads(done.stdout.splitlines()[-1])
    # As system headers, they are not warned about.
    compile_flags = [re.sub("^-I", "-isystem", flag) for flag in compile_flags]
    return TensorFlow(version, compile_flags, link_flags, environment)


def find_cuda(architectures):
    """(:class:`Cuda`, None), or (None, why the CUDA part is left out)."""
    if os.environ.get("KERAS_STSS_CUDA") == "0":
        return None, "KERAS_STSS_CUDA=0 left them out"
    places = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    path = os.pathsep.join([*(f"{place}/bin" for place in places), os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    nvcc = shutil.which("nvcc", path=path)
    if not nvcc:
        return None, "nvcc was not found"
    # nvcc itself knows where its headers and libraries are, whether it was installed by hand, by apt or by conda.
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "empty.cu").touch()
        dry_run = subprocess.run([nvcc, "--dryrun", "empty.cu"], capture_output=True, text=True, cwd=scratch).stderr
    found = {name: shlex.split(flags) for name, flags in re.findall(r"^#\$ (INCLUDES|LIBRARIES)=(.*)$", dry_run, re.M)}
    if set(found) != {"INCLUDES", "LIBRARIES"}:
        return None, f"{nvcc} --dryrun does not tell its folders"
    libraries = [flag for flag in found["LIBRARIES"] if not flag.endswith("stubs")]
    return Cuda(nvcc, found["INCLUDES"], libraries, architectures), None


def _asked_architectures():
    """KERAS_STSS_CUDA_ARCHS as a list that rises."""
    asked = os.environ.get("KERAS_STSS_CUDA_ARCHS") or ARCHITECTURES
    names = re.split(r"[,;\s]+", asked.strip())
    if not all(re.fullmatch(r"[1-9]\d+[af]?", name) for name in names):
        raise BuildError(f"KERAS_STSS_CUDA_ARCHS must be like 80,90. Received: {asked}")
    return sorted(set(names), key=lambda name: (int(name.rstrip("af")), name))


def _instruction_sets():
    x86 = platform.machine() in ("x86_64", "AMD64")
    return INSTRUCTION_SETS if x86 else {"plain": INSTRUCTION_SETS["plain"]}


class _CudaError(BuildError):
    """The library could be built without its CUDA part."""


def _make(library, scratch, compiler, tensorflow, cuda):
    """Compiles what is not compiled yet, links it and has TensorFlow load it."""
    kernels, others = [], []  # (object, command)
    for source in sorted(SOURCES.glob("*_cpu.cc")):
        for name, flags in _instruction_sets().items():
            made = f"{scratch}/{source.stem}.{name}.o"
            kernels.append((made, [*compiler, *FLAGS, *flags, f"-DKERAS_STSS_ISA={name}", "-c", source, "-o", made]))
    own_flags = [*FLAGS, *tensorflow.compile_flags]
    if cuda:
        own_flags += ["-DKERAS_STSS_CUDA", *cuda.include_flags]
        host = ["-ccbin", compiler[0]] if os.environ.get("CXX") and not os.environ.get("NVCC_CCBIN") else []
        codes = [f"-gencode=arch=compute_{re.sub('^[a-z]+_', '', name)},code={name}" for name in cuda.targets]
        for source in sorted(SOURCES.glob("*.cu")):
            made = f"{scratch}/{source.stem}.cu.o"
            others.append((made, [cuda.nvcc, *host, *NVCC_FLAGS, *codes, "-c", source, "-o", made]))
    for source in sorted(SOURCES.glob("*.cc")):
        if not source.stem.endswith("_cpu"):
            differs = cuda and "KERAS_STSS_CUDA" in source.read_text(encoding="utf-8")
            made = f"{scratch}/{source.stem}{'.cuda' if differs else ''}.o"
            others.append((made, [*compiler, *own_flags, "-c", source, "-o", made]))

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        running = [
            [pool.submit(_run, command) for made, command in part if not Path(made).exists()]
            for part in (others, kernels)
        ]
        for job in running[1]:
            job.result()
        try:
            for job in running[0]:
                job.result()
            link = [*compiler, "-shared", "-o", library, *(made for made, _ in [*kernels, *others])]
            link += tensorflow.link_flags
            if cuda:
                # Its own copy of the CUDA runtime, which TensorFlow's must neither serve nor be served by.
                link += [*cuda.link_flags, "-lcudart_static", "-ldl", "-lrt", "-lpthread", "-Wl,--exclude-libs,ALL"]
            _run(link)
            _check_loads(library, tensorflow)
        except BuildError as error:
            if cuda:
                raise _CudaError(str(error), error.log) from None
            raise


def _check_loads(library, tensorflow):
    """Has TensorFlow load the library in a process of its own."""
    code = "import sys, tensorflow as tf; tf.load_op_library(sys.argv[1])"
    try:
        _run([sys.executable, "-c", code, library], env=tensorflow.environment)
    except BuildError as error:
        last = error.log.strip().splitlines()[-1] if error.log.strip() else "no message"
        raise BuildError(f"TensorFlow {tensorflow.version} cannot load what was built: {last}", error.log) from None


def _run(command, env=None):
    """Output of a command; raises BuildError with its first error line."""
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=env)
    if done.returncode == 0:
        return done.stdout
    said = (done.stderr or done.stdout).strip()
    lines = said.splitlines() or [f"exit code {done.returncode}"]
    first = next((line for line in lines if re.search(r"\b(fatal|error)\b", line, re.I)), lines[0])
    raise BuildError(f"{Path(command[0]).name} failed: {first.strip()}", f"{shlex.join(command)}\n{said}")


def _write_record(folder, record):
    unfinished = folder / f"{RECORD}.{os.getpid()}"
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / RECORD)


def main(arguments=None):
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m keras_stss.ops.native.build", description=__doc__.split("\n")[0])
    parser.add_argument("--show", action="store_true", help="build nothing; say what is there")
    parser.add_argument("--optional", action="store_true", help="where it cannot be built, record why and go on")
    options = parser.parse_args(arguments)
    if options.show:
        print(_show())
        return 0
    if options.optional:
        print(describe(build_or_record()))
        return 0
    try:
        print(describe(build()))
    except (BuildError, OSError) as error:
        print(getattr(error, "log", ""), f"no native library was built: {error}", sep="\n", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
