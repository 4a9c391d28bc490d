"""The native library's build and loading: what is recorded, what is refused, and what is said about it."""

import ctypes
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_stss.ops import dispatch, native_status, stss
from keras_stss.ops.native import build, library

COMPILER = shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (g++ or clang++) on this machine")
CLIP = np.random.default_rng(0).normal(size=(1, 3, 4, 5, 6)).astype("float32")
ARGUMENTS = {"temporal_offsets": (0, 1), "window": (3, 3)}

# A library in small: a kernel that is compiled for each instruction set, an operation that calls the best, the file
# that Python asks, and a CUDA file that nothing needs.
KERNEL = """
namespace keras_stss { namespace KERAS_STSS_ISA {
int Lanes() {
#if defined(__AVX512F__)
  return 16;
#elif defined(__AVX2__)
  return 8;
#else
  return 4;
#endif
}
} }
"""
OPERATION = """
#include "dispatch.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
namespace keras_stss {
KERAS_STSS_FOR_EACH_ISA(int Lanes())
static int Best() { KERAS_STSS_DISPATCH(Lanes); }
REGISTER_OP("KerasStssTest>Lanes").Output("lanes: int32");
struct LanesOp : tensorflow::OpKernel {
  using OpKernel::OpKernel;
  void Compute(tensorflow::OpKernelContext* context) override {
    tensorflow::Tensor* lanes = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, {}, &lanes));
    lanes->scalar<int>()() = Best();
  }
};
REGISTER_KERNEL_BUILDER(Name("KerasStssTest>Lanes").Device(tensorflow::DEVICE_CPU), LanesOp);
}
"""


def script(path, text):
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder of sources to build instead of the real ones."""
    folder = tmp_path / "cc"
    folder.mkdir()
    for name in ("dispatch.h", "library.cc"):
        shutil.copy(build.SOURCES / name, folder)
    (folder / "lanes_cpu.cc").write_text(KERNEL)
    (folder / "lanes_op.cc").write_text(OPERATION)
    (folder / "unused.cu").write_text("")
    monkeypatch.setattr(build, "SOURCES", folder)
    monkeypatch.setattr(build, "FLAGS", ["-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden"])
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in the place of the library's own, in a process that has not tried to load one yet."""
    folder = tmp_path / "native"
    folder.mkdir()
    for name in ("KERAS_STSS_NATIVE", "KERAS_STSS_CUDA", "KERAS_STSS_CUDA_ARCHS", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(library, "FOLDER", folder)
    monkeypatch.setattr(dispatch, "_told", set())
    library._load_once.cache_clear()
    yield folder
    library._load_once.cache_clear()


@pytest.fixture
def tensorflow():
    """The TensorFlow of this process, without asking another process for it."""
    flags = [re.sub("^-I", "-isystem", flag) for flag in tf.sysconfig.get_compile_flags()]
    return build.TensorFlow(tf.__version__, flags, tf.sysconfig.get_link_flags(), dict(os.environ))


def write_record(folder, **changes):
    content = b"this is no library"
    record = {"tensorflow": tf.__version__, "cuda": [], "sources": build.sources_digest(), "bytes": len(content)}
    (folder / build.RECORD).write_text(json.dumps(record | changes))
    (folder / build.LIBRARY).write_bytes(content)


def assert_reference_serves(caplog, reason, level=logging.WARNING):
    """The result is the reference's, the reason is logged once, and "native" is refused with it."""
    expected = np.asarray(stss(CLIP, **ARGUMENTS, implementation="reference"))
    with caplog.at_level(logging.INFO, "keras_stss"):
        for _ in range(2):
            np.testing.assert_array_equal(np.asarray(stss(CLIP, **ARGUMENTS)), expected)
    assert [record.levelno for record in caplog.records] == [level]
    (line,) = caplog.messages
    assert reason in line and "\n" not in line
    with pytest.raises(RuntimeError, match=re.escape(reason)):
        stss(CLIP, **ARGUMENTS, implementation="native")
    status = native_status()
    assert not status["available"] and reason in status["reason"]
    json.dumps(status)
    return line


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_library_that_was_never_built(folder, caplog):
    line = assert_reference_serves(caplog, "it has not been built")
    assert "python -m keras_stss.ops.native.build" in line


def test_a_library_for_another_tensorflow(folder, caplog):
    write_record(folder, tensorflow="2.3.4")
    line = assert_reference_serves(caplog, f"it was built for TensorFlow 2.3.4, and this is {tf.__version__}")
    assert "python -m keras_stss.ops.native.build" in line


def test_a_library_that_is_older_than_its_sources(folder, caplog):
    write_record(folder, sources="0123456789abcdef")
    assert_reference_serves(caplog, "its sources have changed since it was built")


def test_a_library_that_is_gone(folder, caplog):
    write_record(folder)
    (folder / build.LIBRARY).unlink()
    assert_reference_serves(caplog, "_native.so is gone")


def test_a_library_that_cannot_be_loaded(folder, caplog):
    write_record(folder)
    assert_reference_serves(caplog, "TensorFlow cannot load it")


def test_a_record_that_cannot_be_read(folder, caplog):
    (folder / build.RECORD).write_text("{")
    assert_reference_serves(caplog, "cannot be read")


def test_switched_off(folder, caplog, monkeypatch):
    write_record(folder)
    monkeypatch.setenv("KERAS_STSS_NATIVE", "0")
    assert_reference_serves(caplog, "KERAS_STSS_NATIVE=0 switches it off", logging.INFO)


def test_importing_loads_nothing():
    code = """
import sys
import keras_stss.ops, keras_stss.blocks, keras_stss.models, keras_stss.training.loop
assert "keras_stss.ops.native.library" not in sys.modules
assert "_native.so" not in open("/proc/self/maps").read()
import keras
assert keras.saving.get_registered_object("keras_stss>SELFYBlock") is keras_stss.blocks.SELFYBlock
"""
    if not Path("/proc/self/maps").is_file():
        pytest.skip("no /proc on this system")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Gpu:
    name = "/physical_device:GPU:0"


@pytest.mark.parametrize(
    ("operation", "cuda", "capability", "reason"),
    [
        ("stss", ["sm_80", "compute_80"], (9, 0), None),
        ("stss", [], (9, 0), "was built without CUDA"),
        ("displacement", [], (9, 0), "was built without CUDA"),
        ("map_conv", ["sm_80", "compute_80"], (9, 0), "has CPU kernels only"),
        ("stss", ["sm_80", "sm_90", "compute_90"], (7, 5), "KERAS_STSS_CUDA_ARCHS=75,80"),
    ],
)
def test_tensors_are_not_pulled_off_the_gpu(operation, cuda, capability, reason, monkeypatch):
    monkeypatch.setattr(library, "_loaded", lambda: (object(), {"cuda": cuda}, None))
    monkeypatch.setattr(library, "_call", lambda result, function: 0)
    assert library.why_not(operation) is None or tf.config.get_visible_devices("GPU")
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [Gpu()])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _: {"compute_capability": capability})
    found = library.why_not(operation)
    assert found is None if reason is None else reason in found


def test_a_driver_that_is_too_old(monkeypatch):
    monkeypatch.setattr(library, "_loaded", lambda: (object(), {"cuda": ["sm_80", "compute_80"]}, None))
    monkeypatch.setattr(library, "_call", lambda result, function: int(function == "KerasStssDriverTooOld"))
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [Gpu()])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _: {})
    assert "driver is older" in library.why_not("stss")


# --- building ---------------------------------------------------------------------------------------------------------


def test_no_compiler(folder, sources, tensorflow, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(folder))
    write_record(folder)  # an earlier build, which would be loaded for sources that it was not made from
    record = build.build_or_record(folder)
    assert record == build.read_record(folder)
    assert "no C++ compiler was found" in build.describe(record)
    assert not (folder / build.LIBRARY).exists()
    assert_reference_serves(caplog, "no C++ compiler was found")

    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(build.BuildError, match="that CXX names is not there: no-such-compiler"):
        build.build(folder, tensorflow)


def test_a_compiler_that_fails(folder, sources, tensorflow, tmp_path, monkeypatch, caplog):
    fake = script(
        tmp_path / "fake-c++",
        '[ "$1" = --version ] && echo fake 1.0 && exit\necho In x: >&2; echo "a.cc:1: error: too new" >&2; exit 1\n',
    )
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("KERAS_STSS_CUDA", "0")
    monkeypatch.setattr(build, "find_tensorflow", lambda: tensorflow)
    assert build.build_or_record(folder) == {"error": "fake-c++ failed: a.cc:1: error: too new"}
    assert [path.name for path in folder.iterdir()] == [build.RECORD]
    assert_reference_serves(caplog, "its build failed: fake-c++ failed: a.cc:1: error: too new")


@needs_compiler
def test_what_is_in_the_way_of_a_build(folder, sources, tensorflow, monkeypatch):
    monkeypatch.setattr(build, "_ASK_TENSORFLOW", "import no_such_tensorflow")
    with pytest.raises(build.BuildError, match="TensorFlow is not installed for"):
        build.build(folder)
    monkeypatch.setenv("KERAS_STSS_CUDA_ARCHS", "sm_80")
    with pytest.raises(build.BuildError, match=r"must be like 80,90. Received: sm_80"):
        build.build(folder, tensorflow)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(build.BuildError, match="cannot be written to"):
        build.build(folder, tensorflow)


def test_half_a_library_is_not_loaded(folder, caplog):
    write_record(folder, bytes=1000)  # loading one ends the process
    assert_reference_serves(caplog, "has 18 bytes instead of 1000")


@pytest.mark.parametrize("text", ["null", "[]", "{", ""])
def test_a_record_that_is_none(folder, caplog, text):
    write_record(folder)
    (folder / build.RECORD).write_text(text)
    assert_reference_serves(caplog, build.RECORD)


def test_an_installation_without_it(folder, monkeypatch):
    monkeypatch.setenv("KERAS_STSS_NATIVE", "0")
    assert "left it out of the installation" in build.build_or_record(folder)["error"]
    write_record(folder)  # one that was built since stays
    assert build.build_or_record(folder) == build.read_record(folder)
    assert (folder / build.LIBRARY).is_file()


def test_the_command(tmp_path):
    """As a program on its own, before anything is installed."""
    folder = tmp_path / "native"
    folder.mkdir()
    shutil.copy(build.HERE / "build.py", folder)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("KERAS_STSS", "CXX"))}

    def run(*options):
        command = [sys.executable, folder / "build.py", *options]
        done = subprocess.run(command, env=environment | {"PATH": str(tmp_path)}, capture_output=True, text=True)
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    without = "keras_stss works without it, more slowly"
    why = "no C++ compiler was found (g++ or clang++, or one that CXX names)"
    assert run("--show") == (0, f"no native library: it has not been built; {without}", "")
    assert run() == (2, "", f"no native library was built: {why}")
    assert not (folder / build.RECORD).exists()
    assert run("--optional") == (0, f"no native library: {why}; {without}", "")
    assert run("--show") == (0, f"no native library: {why}; {without}", "")
    (folder / build.RECORD).write_text("null")
    _, said, _ = run("--show")
    assert said.startswith("no native library: ") and said.endswith(f"is no record of a build; {without}")
    (folder / build.RECORD).write_text('{"tensorflow": "2.0"}')
    _, said, _ = run("--show")
    assert said.startswith("no native library: ") and "_native.so is gone" in said


@needs_compiler
def test_a_library_whose_cuda_part_fails_is_built_and_loaded_without_it(
    folder, sources, tensorflow, tmp_path, monkeypatch, capsys
):
    """From sources to a loaded operation; nvcc is there, but refuses."""
    tools = tmp_path / "toolkit" / "bin"
    tools.mkdir(parents=True)
    answers = 'echo "#\\$ INCLUDES=\\"-I/nowhere\\"" >&2; echo "#\\$ LIBRARIES= \\"-L/nowhere\\"" >&2; exit'
    script(
        tools / "nvcc",
        f'[ "$1" = --dryrun ] && {{ {answers}; }}\necho "error: -- unsupported GNU version" >&2; exit 1\n',
    )
    monkeypatch.setenv("CUDA_HOME", str(tools.parent))
    record = build.build(folder, tensorflow)
    assert record == build.read_record(folder)
    assert record["cuda"] == [] and "nvcc failed: error: -- unsupported GNU version" in record["cuda_reason"]
    assert "CUDA: none (nvcc failed" in build.describe(record)
    assert "CUDA kernels are left out" in capsys.readouterr().err
    assert record["tensorflow"] == tf.__version__ and record["sources"] == build.sources_digest()
    assert sorted(path.name for path in folder.iterdir()) == sorted([build.RECORD, build.LIBRARY])

    status = native_status()
    assert (status["available"], status["reason"], status["cuda"]) == (True, None, [])
    lanes = {"plain": 4, "avx2": 8, "avx512": 16}[status["instruction_set"]]
    assert int(library.load().keras_stss_test_lanes()) == lanes
    assert library._call(ctypes.c_int, "KerasStssDriverTooOld") == 0


@needs_compiler
def test_a_library_that_does_not_load_is_not_kept(folder, sources, tensorflow, monkeypatch):
    monkeypatch.setenv("KERAS_STSS_CUDA", "0")
    (sources / "lanes_op.cc").write_text("void NotThere();\nstatic int once = (NotThere(), 1);\n")
    with pytest.raises(build.BuildError, match=r"cannot load what was built: .*NotThere"):
        build.build(folder, tensorflow)
    assert list(folder.iterdir()) == []


def test_the_record_notices_every_source(sources):
    digests = {build.sources_digest()}
    for name in ("dispatch.h", "lanes_op.cc", "unused.cu"):
        with (sources / name).open("a") as file:
            file.write("// changed\n")
        digests.add(build.sources_digest())
    (sources / "notes.txt").write_text("no source")
    digests.add(build.sources_digest())
    assert len(digests) == 4


@pytest.mark.skipif(not (COMPILER and shutil.which("nm")), reason="needs a C++ compiler and nm")
@pytest.mark.parametrize("source", sorted(build.SOURCES.glob("*_cpu.cc")), ids=lambda path: path.name)
def test_no_instruction_set_can_be_merged_into_another(source, tmp_path):
    """The linker keeps one of several weak symbols of a name: an AVX-512 copy, kept for all, would crash elsewhere.

    Without optimisation nothing is inlined that does not have to be, so that every such function shows.
    """
    for name, flags in build._instruction_sets().items():
        made = tmp_path / f"{name}.o"
        defines = [f"-DKERAS_STSS_ISA={name}", "-O0", "-w"]
        subprocess.run([COMPILER, *build.FLAGS, *flags, *defines, "-c", source, "-o", made], check=True)
        table = subprocess.run(["nm", "-C", made], capture_output=True, text=True, check=True).stdout
        weak = re.findall(r"^\S+ [VWu] (.*)", table, re.M)
        own = (f"keras_stss::{name}::", "DW.ref.__gxx_personality_v0")  # the latter is one pointer, in all the same
        assert [symbol for symbol in weak if not any(mark in symbol for mark in own)] == []
