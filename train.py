"""Trains a model: python train.py --config demo.yaml [key.path=value …]."""

import sys

from keras_stss.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
