"""What all quantizers have in common: shapes, masks, the two ways between vectors and indices, and counts."""

import keras
from keras import layers, ops

from keras_vqdit.checks import fits, positive_integer
from keras_vqdit.layers.nearest_code import nearest_codes


class Quantizer(layers.Layer):
    """Base class of the quantizers: `quantizer(z)` gives `(quantized, loss)`, `encode` and `decode` go half the way.

    A subclass gives the property `codebook` `(K, D)`, in which vectors are looked up, and `call(z, mask, training)`. The
    latter begins with `flatten`, ends with `unflatten`, and writes how often each code was chosen to `batch_counts`, in
    training and out of it: Keras's JAX trainer drops what a metric is told inside `call`.

    Args:
        num_embeddings: number of codes K, a positive integer.
        embedding_dim: length D of a vector, a positive integer.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, num_embeddings, embedding_dim, **kwargs):
        super().__init__(autocast=False, **kwargs)  # vectors are compared as they come, in float32
        self.num_embeddings = positive_integer("num_embeddings", num_embeddings)
        self.embedding_dim = positive_integer("embedding_dim", embedding_dim)
        self.supports_masking = True

    def build(self, input_shape=None):
        if input_shape is not None:
            self._check_shape(input_shape)
        self.batch_counts = self.add_state("batch_counts", (self.num_embeddings,), "zeros", aggregation="sum")
        self.built = True

    def add_state(self, name, shape, initializer, aggregation="mean"):
        """Add a float32 weight that the layer writes and no optimizer trains."""
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            dtype="float32",
            autocast=False,
            trainable=False,
            aggregation=aggregation,
        )

    # === Between vectors and indices ===

    def encode(self, z, mask=None):
        """Return the index of the code nearest to each vector.

        Args:
            z: vectors `(B, *grid, embedding_dim)`.
            mask: bool `(B, *grid)`, False for padding. Default: all count.

        Returns:
            int32 indices `(B, *grid)`, -1 where the mask is False.
        """
        vectors, weights = self.flatten(z, mask)
        indices = nearest_codes(vectors, self.codebook)
        if weights is not None:
            indices = ops.where(weights > 0, indices, -1)
        return ops.reshape(indices, ops.shape(z)[:-1])

    def decode(self, indices):
        """Return the codes of indices.

        Args:
            indices: integers of any shape.

        Returns:
            Vectors `(*indices.shape, embedding_dim)` of the layer's compute dtype. An index that is none of
            0 … `num_embeddings - 1`, such as the -1 of padding, gives a zero vector.
        """
        indices = ops.cast(indices, "int32")
        known = ops.logical_and(indices >= 0, indices < self.num_embeddings)
        vectors = ops.take(self.codebook, ops.where(known, indices, 0), axis=0)
        return ops.cast(ops.where(known[..., None], vectors, 0.0), self.compute_dtype)

    # === The parts of a call ===

    def flatten(self, z, mask):
        """Flatten vectors and mask.

        Args:
            z: vectors `(B, *grid, D)`.
            mask: bool `(B, *grid)` or None.

        Returns:
            `(vectors, weights)`: float32 `(N, D)`, zero where masked; and float32 `(N,)`, 1 for what counts and 0 for
            padding, or None without a mask.
        """
        z = ops.cast(z, "float32")
        self._check_shape(z.shape)
        vectors = ops.reshape(z, (-1, self.embedding_dim))
        if mask is None:
            return vectors, None
        mask = ops.convert_to_tensor(mask)
        if not fits(mask.shape, z.shape[:-1]):
            raise ValueError(
                "`mask` must have the shape of `z` without its last axis. "
                f"Received: mask.shape={tuple(mask.shape)}, z.shape={tuple(z.shape)}"
            )
        weights = ops.reshape(ops.cast(ops.cast(mask, "bool"), "float32"), (-1,))
        return ops.where(weights[:, None] > 0, vectors, 0.0), weights  # padding may hold anything, NaN too

    def unflatten(self, z, output, error, weights):
        """Give the output `(N, D)` and the error `(N, D)` of each vector the shapes `call` returns.

        Returns:
            `(quantized, loss)`: `(B, *grid, D)` of the compute dtype, 0 where masked; and `(B,)`, the mean of the
            error over D and the positions that count, 0 where none does.
        """
        shape = ops.shape(z)
        error = ops.reshape(ops.mean(error, axis=-1), (shape[0], -1))  # (B, P)
        if weights is None:
            loss = ops.mean(error, axis=-1)
        else:
            output = ops.where(weights[:, None] > 0, output, 0.0)
            valid = ops.reshape(weights, ops.shape(error))
            loss = ops.sum(error * valid, axis=-1) / ops.maximum(ops.sum(valid, axis=-1), 1.0)
        return ops.cast(ops.reshape(output, shape), self.compute_dtype), loss

    # === Shapes and config ===

    def compute_output_spec(self, z, mask=None, training=None):
        self._check_shape(z.shape)
        return (
            keras.KerasTensor(z.shape, dtype=self.compute_dtype),
            keras.KerasTensor((z.shape[0],), dtype="float32"),
        )

    def compute_output_shape(self, input_shape):
        return tuple(input_shape), (input_shape[0],)

    def compute_mask(self, z, mask=None):
        return mask, None

    def _check_shape(self, shape):
        if len(shape) < 2 or shape[-1] != self.embedding_dim:
            raise ValueError(
                f"`z` must be of shape (batch, ..., embedding_dim={self.embedding_dim}). "
                f"Received: z.shape={tuple(shape)}"
            )

    def get_config(self):
        return {
            **super().get_config(),
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
        }
