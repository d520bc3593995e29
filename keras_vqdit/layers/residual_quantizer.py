"""Residual quantization: a vector becomes the sum of several codes, each of what the ones before it left over."""

import contextlib

import keras
from keras import ops

from keras_vqdit.checks import number, one_of, positive_integer
from keras_vqdit.layers.gradient_estimators import rotation_trick, straight_through
from keras_vqdit.layers.quantizer import Quantizer
from keras_vqdit.layers.replicas import defer, deferred_learning, learning_is_deferred
from keras_vqdit.layers.vector_quantizer import VectorQuantizer


@keras.saving.register_keras_serializable("keras_vqdit")
class ResidualQuantizer(Quantizer):
    """Replace each vector by a sum of codes, one of each of `num_levels` codebooks.

    The first level takes the code nearest to the vector, the next one the code nearest to what is left, and so on: coarse to
    fine. L levels of K codes tell K^L vectors apart with L·K codes. Every level is a `VectorQuantizer`, which learns from
    what the levels before it leave over; the loss is the sum of theirs. The output's gradient passes the sum once, as it
    passes a single code; a straight-through of every level by itself would count it L times.

    Args:
        num_levels: number of codebooks L, a positive integer.
        num_embeddings: number of codes K of each.
        embedding_dim: length D of a vector.
        gradient: `"rotation"` or `"straight_through"`, how the output's gradient reaches the vectors. Default:
            `"rotation"`.
        codebook, commitment_cost, decay, epsilon, kmeans_init, restart_threshold: of each level, as in `VectorQuantizer`.
        seed: integer; the levels get it and the integers that follow. Default: None.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        z: vectors `(B, *grid, D)`.
        mask: bool `(B, *grid)`, as in `VectorQuantizer`.
        training: bool, whether the codes learn.

    Returns:
        `(quantized, loss)`, as of `VectorQuantizer`. `encode` gives indices `(B, *grid, L)`, coarse to fine, and `decode`
        takes them, or those of the first few levels.

    Raises:
        ValueError: if an argument is out of its range, or the last axis of `z` is not `embedding_dim` long.

    Example:

    >>> rvq = ResidualQuantizer(num_levels=3, num_embeddings=64, embedding_dim=16)
    >>> z = np.random.default_rng(0).normal(size=(8, 50, 16))
    >>> quantized, loss = rvq(z, training=True)
    >>> indices = rvq.encode(z)
    >>> tuple(indices.shape)
    (8, 50, 3)
    >>> coarse = rvq.decode(indices[..., :1])

    References:
        - [SoundStream](https://arxiv.org/abs/2107.03312), section III-C
        - [Autoregressive Image Generation using Residual Quantization](https://arxiv.org/abs/2203.01941)
    """

    def __init__(
        self,
        num_levels,
        num_embeddings,
        embedding_dim,
        *,
        gradient="rotation",
        codebook="ema",
        commitment_cost=0.25,
        decay=0.95,
        epsilon=1e-5,
        kmeans_init=True,
        restart_threshold=0.1,
        seed=None,
        **kwargs,
    ):
        super().__init__(num_embeddings, embedding_dim, **kwargs)
        self.num_levels = positive_integer("num_levels", num_levels)
        self.gradient = one_of("gradient", gradient, ("straight_through", "rotation"))
        self.options = {
            "codebook": codebook,
            "commitment_cost": commitment_cost,
            "decay": decay,
            "epsilon": epsilon,
            "kmeans_init": kmeans_init,
            "restart_threshold": restart_threshold,
        }
        if seed is not None:
            number("seed", seed)
        self.seed = seed
        self.levels = [
            VectorQuantizer(
                num_embeddings,
                embedding_dim,
                gradient="straight_through",  # whose gradient is not used
                seed=None if seed is None else seed + i,
                dtype="float32",
                name=f"level_{i}",
                **self.options,
            )
            for i in range(self.num_levels)
        ]

    def build(self, input_shape=None):
        if input_shape is not None:
            self._check_shape(input_shape)
        for level in self.levels:
            level.build(input_shape)
        self.built = True

    @property
    def batch_counts(self):
        """How many vectors chose each code of each level in the last call, `(L, K)`."""
        return ops.stack([level.batch_counts.value for level in self.levels])

    @property
    def codebook(self):
        """The codes of all levels, `(L, K, D)`."""
        return ops.stack([level.codebook for level in self.levels])

    # === Quantization ===

    def encode(self, z, mask=None):
        residual, indices = ops.cast(z, "float32"), []
        for level in self.levels:
            indices.append(level.encode(residual, mask))
            residual = residual - level.decode(indices[-1])
        return ops.stack(indices, axis=-1)

    def decode(self, indices):
        count = indices.shape[-1]
        if not 1 <= count <= self.num_levels:
            raise ValueError(
                f"`indices` must be of shape (..., levels) with 1 to {self.num_levels} levels. "
                f"Received: shape={tuple(indices.shape)}"
            )
        codes = sum(self.levels[i].decode(indices[..., i]) for i in range(count))
        return ops.cast(codes, self.compute_dtype)

    def call(self, z, mask=None, training=None):
        vectors, weights = self.flatten(z, mask)  # (N, D), (N,) or None
        with deferred_learning() if learning_is_deferred() else contextlib.nullcontext() as notes:
            residual, loss = ops.cast(z, "float32"), 0.0
            if mask is not None:
                residual = ops.reshape(vectors, ops.shape(residual))
            total = ops.zeros_like(residual)
            for level in self.levels:
                code, error = level(residual, mask=mask, training=training)
                code = ops.stop_gradient(code)
                residual, total, loss = residual - code, total + code, loss + error
        if notes:
            defer(self, {f"{i}/{key}": value for i, (_, seen) in enumerate(notes) for key, value in seen.items()})
        q = ops.reshape(total, ops.shape(vectors))
        output = rotation_trick(vectors, q) if self.gradient == "rotation" else straight_through(vectors, q)
        output, _ = self.unflatten(z, output, ops.zeros_like(vectors), weights)
        return output, loss

    # === Learning ===

    def start(self, **observations):
        """Place the codes of each level by k-means, from what those of the levels before it leave of the vectors of all."""
        residual = None
        for level, seen in zip(self.levels, self._by_level(observations), strict=True):
            residual = seen["vectors"] if residual is None else residual
            level.start(**{**seen, "vectors": residual})
            residual = residual - level.decode(level.encode(residual))

    def learn(self, **observations):
        """Learn from a batch, each level by itself; arguments as of `VectorQuantizer.learn`, a set a level."""
        for level, seen in zip(self.levels, self._by_level(observations), strict=True):
            level.learn(**seen)

    def _by_level(self, observations):
        found = [{} for _ in self.levels]
        for name, value in observations.items():
            i, key = name.split("/")
            found[int(i)][key] = value
        return found

    # === Config ===

    def get_config(self):
        return {
            **super().get_config(),
            "num_levels": self.num_levels,
            "gradient": self.gradient,
            **self.options,
            "seed": self.seed,
        }
