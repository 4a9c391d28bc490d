"""``python -m keras_stss``."""

import sys

from keras_stss.cli import main

if __name__ == "__main__":
    sys.exit(main())
