"""How much of a codebook an epoch used."""

import keras
from keras import ops

from keras_vqdit.checks import positive_integer


class _CodeCounts(keras.metrics.Metric):
    """Add up how many vectors chose each code, over the whole epoch: one batch alone misleads."""

    def __init__(self, num_embeddings, num_levels=None, *, name=None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.num_embeddings = positive_integer("num_embeddings", num_embeddings)
        self.num_levels = None if num_levels is None else positive_integer("num_levels", num_levels)
        shape = (num_embeddings,) if num_levels is None else (num_levels, num_embeddings)
        # float32 under every policy: float16 can not count beyond 2,048.
        self.counts = self.add_variable(shape, "zeros", dtype="float32", name="counts")

    def update_state(self, counts):
        """Add the counts `(K,)`, with levels `(L, K)`, of one batch, such as `VectorQuantizer.batch_counts`."""
        counts = ops.cast(counts, "float32")
        if tuple(counts.shape) != tuple(self.counts.shape):
            raise ValueError(
                f"`counts` must be of shape {tuple(self.counts.shape)}. Received: counts.shape={tuple(counts.shape)}"
            )
        self.counts.assign(self.counts + counts)

    def get_config(self):
        return {**super().get_config(), "num_embeddings": self.num_embeddings, "num_levels": self.num_levels}


@keras.saving.register_keras_serializable("keras_vqdit")
class CodebookUsage(_CodeCounts):
    """Measure the fraction of the codes that at least one vector of the epoch chose.

    Args:
        num_embeddings: K, the number of codes.
        num_levels: L, the number of codebooks of a `ResidualQuantizer`; the result is their mean. Default: None, one
            codebook.
        name: Default: `"codebook_usage"`.
        dtype: ignored for the counts, which are float32.

    Example:

    >>> metric = CodebookUsage(4)
    >>> metric.update_state(np.array([3.0, 0.0, 1.0, 0.0]))
    >>> metric.update_state(np.array([2.0, 2.0, 0.0, 0.0]))
    >>> float(metric.result())
    0.75
    """

    def __init__(self, num_embeddings, num_levels=None, *, name="codebook_usage", dtype=None):
        super().__init__(num_embeddings, num_levels, name=name, dtype=dtype)

    def result(self):
        return ops.mean(ops.cast(self.counts > 0, "float32"))


@keras.saving.register_keras_serializable("keras_vqdit")
class CodebookPerplexity(_CodeCounts):
    """Measure the perplexity exp(−Σ p ln(p + 1e-10)) of the codes' frequencies p over the epoch.

    It is K where all codes are equally frequent, 1 where one code is all there is, and 0 before the first update.

    Args:
        num_embeddings: K, the number of codes.
        num_levels: L, the number of codebooks of a `ResidualQuantizer`; the result is their geometric mean. Default:
            None, one codebook.
        name: Default: `"codebook_perplexity"`.
        dtype: ignored for the counts, which are float32.

    Example:

    >>> metric = CodebookPerplexity(4)
    >>> metric.update_state(np.array([5.0, 5.0, 0.0, 0.0]))
    >>> round(float(metric.result()), 6)
    2.0
    """

    def __init__(self, num_embeddings, num_levels=None, *, name="codebook_perplexity", dtype=None):
        super().__init__(num_embeddings, num_levels, name=name, dtype=dtype)

    def result(self):
        total = ops.sum(self.counts, axis=-1, keepdims=True)
        p = self.counts / ops.maximum(total, 1.0)
        entropy = -ops.sum(p * ops.log(p + 1e-10), axis=-1)
        return ops.where(ops.max(total) > 0, ops.exp(ops.mean(entropy)), 0.0)
