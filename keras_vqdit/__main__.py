"""`python -m keras_vqdit`."""

import sys

from keras_vqdit.cli import main

if __name__ == "__main__":
    sys.exit(main())
