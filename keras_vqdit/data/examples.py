"""Examples in memory: what every source of images hands to the pipeline, and how a test set is held out of it."""

import dataclasses

import numpy as np

from keras_vqdit.tokenizers import TextTokenizer


@dataclasses.dataclass(frozen=True)
class Examples:
    """Features and labels of examples, along the first axis.

    Attributes:
        features: dict of arrays: "image" `(N, H, W, C)`, uint8 in 0..255 or float32 in [-1, 1]; "audio" float32 `(N, T, 1)`, or,
            as they were read, `(N,)` objects `(T,)`; "text" int32 codes `(N, T)`.
        labels: int32 `(N,)` or None.
    """

    features: dict
    labels: np.ndarray | None = None

    def __len__(self):
        return len(next(iter(self.features.values())))

    def take(self, indices):
        features = {name: array[indices] for name, array in self.features.items()}
        return Examples(features, None if self.labels is None else self.labels[indices])


@dataclasses.dataclass(frozen=True)
class Source:
    """What was read.

    Attributes:
        name: of the data set.
        train: `Examples`, or a dict of them, modality → bank, whose items are paired by label.
        test: as `train`; None: hold some of `train` out.
        class_names: name of each class, where they are known.
        sample_rate: of sounds, samples a second.
        text_tokenizer: of texts.
    """

    name: str
    train: Examples | dict
    test: Examples | dict | None = None
    class_names: tuple[str, ...] | None = None
    sample_rate: int | None = None
    text_tokenizer: TextTokenizer | None = None


def hold_out(examples, test_fraction):
    """Split examples into training and test examples, the same fraction of every class.

    The split depends on the data alone and on no seed: whoever trains with one seed and evaluates with another still
    never meets a training example in the test set. Both parts are shuffled, because sources are often sorted by class.

    Args:
        examples: `Examples`.
        test_fraction: fraction of the examples to hold out, between 0 and 1.

    Returns:
        Training and test `Examples`; together every example once.
    """
    size = len(examples)
    if size < 2:
        raise ValueError(f"At least 2 examples are needed to hold some out for testing. Received: {size}")
    # RandomState rather than Generator: NumPy keeps its stream equal over all versions, so the split never moves.
    random = np.random.RandomState(0)
    labels = np.zeros(size, "int32") if examples.labels is None else examples.labels
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)

    # Largest remainders: the whole comes out right, and a class gives its last example only where no other can.
    quotas = test_fraction * counts
    takes = np.floor(quotas).astype(int)
    missing = min(max(round(test_fraction * size), 1), size - 1) - takes.sum()
    order = np.lexsort((np.arange(len(counts)), takes - quotas, takes + 1 >= counts))
    takes[order[: max(missing, 0)]] += 1

    test = np.concatenate([random.permutation(np.flatnonzero(classes == k))[:n] for k, n in enumerate(takes)])
    train = np.setdiff1d(np.arange(size), test)
    return examples.take(random.permutation(train)), examples.take(random.permutation(test))
