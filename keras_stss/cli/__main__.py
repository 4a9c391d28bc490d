"""``python -m keras_stss.cli``."""

import sys

from keras_stss.cli import main

if __name__ == "__main__":
    sys.exit(main())
