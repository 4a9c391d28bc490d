#!/bin/sh
# The whole line on the embedded data set: make it, train, evaluate, export, predict. Called by `make demo`.
set -eu
data=data/synthetic run=runs/demo served=runs/demo/served/1

step() { printf '\n== %s\n   %s\n' "$1" "$2"; }

step "1/5 data: videos whose class is the motion alone" "keras-stss prepare synthetic $data"
keras-stss prepare synthetic "$data"
step "2/5 training a small SELFYNet" "python train.py --config demo.yaml"
python train.py --config demo.yaml
step "3/5 evaluation on the held-out clips" "keras-stss evaluate $run"
keras-stss evaluate "$run"
step "4/5 export for TensorFlow Serving" "keras-stss export $run $served"
keras-stss export "$run" "$served" --force
clip=$(find "$data/20bn-something-something-v2" -name '*.webm' | sort -V | tail -n 1)
step "5/5 prediction of one clip" "keras-stss predict $run $clip"
keras-stss predict "$run" "$clip"

cat <<EOF

Everything lies in
  $data            the videos and their annotations
  $run                config, metrics.jsonl, TensorBoard events, checkpoints, best.keras, log
  $served       the SavedModel
Look at the curves with: .venv/bin/tensorboard --logdir $run
EOF
