#!/bin/sh
# Builds the environments of the peers, other people's code that the benchmark and tests/test_peers.py compare with:
#   .venv-peers      PyTorch and spatial-correlation-sampler (a C++ compiler is needed); Pillow, OpenCV and torchcodec
#   .venv-peers-tfa  TensorFlow Addons 0.23, which TensorFlow 2.15 is the last to load (Python 3.9 to 3.11)
# An environment that cannot be built is left with nothing but why-not.txt, which the benchmark prints in its rows.
cd "$(dirname "$0")/../.." || exit 1

# create FOLDER VERSIONS: a virtual environment of the first Python among the versions
create() {
  test -f "$1/complete" && return 1
  rm -rf "$1"
  for version in $2; do
    if "python3.$version" -c 'import venv' 2>/dev/null; then
      echo "$1: with python3.$version …"
      "python3.$version" -m venv "$1" && "$1/bin/python" -m pip install --quiet --upgrade pip && return 0
    fi
  done
  give_up "$1" "no Python 3.x with x among: $2"
  return 1
}

give_up() {
  rm -rf "$1"
  mkdir "$1"
  echo "$2" > "$1/why-not.txt"
  echo "$1: not built: $2" >&2
}

# finish FOLDER CODE: keeps the environment where CODE runs in it
finish() {
  if said=$("$1/bin/python" -W ignore -c "$2" 2>&1); then
    touch "$1/complete"
    echo "$1: ready"
  else
    give_up "$1" "$(printf '%s' "$said" | tail -n 1)"
  fi
}

if create .venv-peers "13 12 11 10"; then
  .venv-peers/bin/python -m pip install --quiet --progress-bar off numpy setuptools wheel ninja "torch==2.13.*"
  # Its setup imports torch, and wants CUDA unless it is talked out of it: see cpu_only/sitecustomize.py.
  PYTHONPATH=benchmarks/peers/cpu_only .venv-peers/bin/python -m pip install --quiet --progress-bar off \
    --no-build-isolation spatial-correlation-sampler==0.5.0 ||
    echo ".venv-peers: no spatial-correlation-sampler (pip's reason is above); PyTorch's own rows can be measured" >&2
  finish .venv-peers "import torch"
fi
if test -f .venv-peers/complete && ! test -f .venv-peers/readers; then
  # PyAV for its FFmpeg libraries, which torchcodec loads by their plain names. torchcodec 0.13 goes with PyTorch 2.13.
  .venv-peers/bin/python -m pip install --quiet --progress-bar off Pillow==13.* opencv-python-headless==5.0.* \
    torchcodec==0.13.* av==18.1.* && .venv-peers/bin/python benchmarks/peers/ffmpeg_links.py &&
    touch .venv-peers/readers ||
    echo ".venv-peers: not all of Pillow, OpenCV and torchcodec (pip's reason is above); the others can be measured" >&2
fi
if create .venv-peers-tfa "11 10 9"; then
  # The full wheel: the operation's library does not load beside tensorflow-cpu.
  .venv-peers-tfa/bin/python -m pip install --quiet --progress-bar off tensorflow==2.15.1 tensorflow-addons==0.23.0
  finish .venv-peers-tfa "
import tensorflow as tf, tensorflow_addons as tfa
tfa.layers.CorrelationCost(1, 1, 1, 1, 1, 'channels_first')([tf.ones((1, 2, 3, 3))] * 2)"
fi
exit 0
