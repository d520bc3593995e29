"""Vector quantization: each vector becomes the nearest code of a learned table."""

import numbers

import keras
from keras import layers, ops

from keras_vqdit.layers.codebook import code_statistics, draw_vectors, kmeans, moving_codebook, unit
from keras_vqdit.layers.gradient_estimators import rotation_trick, straight_through
from keras_vqdit.layers.nearest_code import nearest_codes

KMEANS_ROUNDS = 10
RESTART_COUNT = 1.0  # the moving count that a drawn code starts with, as a fraction of the mean count


@keras.saving.register_keras_serializable("keras_vqdit")
class VectorQuantizer(layers.Layer):
    """Replace each vector by the nearest of `num_embeddings` codes, which learn to lie where the vectors are."""

    def __init__(
        self,
        num_embeddings,
        embedding_dim,
        *,
        codebook="ema",
        commitment_cost=0.25,
        decay=0.99,
        epsilon=1e-5,
        gradient="straight_through",
        distance="euclidean",
        kmeans_init=True,
        restart_threshold=0.1,
        seed=None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # distances are taken in float32
        _check_choice("codebook", codebook, ("ema", "gradient"))
        _check_choice("gradient", gradient, ("straight_through", "rotation"))
        _check_choice("distance", distance, ("euclidean", "cosine"))
        if commitment_cost < 0:
            raise ValueError(
                f"`commitment_cost` must not be negative. Received: commitment_cost={commitment_cost}"
            )
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must be in [0, 1). Received: decay={decay}")
        if epsilon <= 0:
            raise ValueError(f"`epsilon` must be positive. Received: epsilon={epsilon}")
        if restart_threshold is not None and not 0 <= restart_threshold < 1:
            raise ValueError(
                f"`restart_threshold` must be None or in [0, 1). Received: restart_threshold={restart_threshold}"
            )
        self.num_embeddings = _check_integer("num_embeddings", num_embeddings)
        self.embedding_dim = _check_integer("embedding_dim", embedding_dim)
        self.codebook_type = codebook
        self.commitment_cost = commitment_cost
        self.decay = decay
        self.epsilon = epsilon
        self.gradient = gradient
        self.distance = distance
        self.kmeans_init = kmeans_init
        self.restart_threshold = restart_threshold
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    # === State ===

    def build(self, input_shape=None):
        if input_shape is not None:
            self._check_shape(input_shape)
        shape = (self.num_embeddings, self.embedding_dim)
        normal = keras.initializers.RandomNormal(stddev=0.05, seed=self.seed)
        if self.codebook_type == "gradient":
            # The codes are `embeddings + origin`: only the optimizer writes the one, only k-means and restarts the
            # other. (What `call` assigns to a trainable variable is lost under JAX.)
            self.embeddings = self.add_weight(
                name="embeddings", shape=shape, initializer=normal, dtype="float32", autocast=False
            )
            self.origin = self._add_state("origin", shape, "zeros")
        else:
            # State is the count and the sum, whose mean over replicas is exact. Both start as one vector a code.
            self.total = self._add_state("total", shape, normal)
        self.count = self._add_state("count", shape[:1], "ones")
        self.initialized = self._add_state("initialized", (), "zeros" if self.kmeans_init else "ones")
        self.batch_counts = self._add_state("batch_counts", shape[:1], "zeros", aggregation="sum")
        self.built = True

    def _add_state(self, name, shape, initializer, aggregation="mean"):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            dtype="float32",
            autocast=False,
            trainable=False,
            aggregation=aggregation,
        )

    @property
    def codebook(self):
        """The codes `(K, D)` that `call` and `decode` give, float32; of unit length where the distance is cosine."""
        if not self.built:
            self.build()
        if self.codebook_type == "gradient":
            codes = self.embeddings + self.origin
        else:
            codes = moving_codebook(self.count.value, self.total.value, self.epsilon)
        return unit(codes) if self.distance == "cosine" else codes

    # === Quantization ===

    def call(self, z, mask=None, training=None):
        shape = ops.shape(z)
        vectors, weights = self._flatten(z, mask)  # (N, D), (N,) or None
        learns = bool(training) and self.trainable
        fixed = ops.stop_gradient(vectors)
        ones = ops.ones_like(fixed[:, 0]) if weights is None else weights
        if learns:
            noise = keras.random.uniform(
                (self.num_embeddings + 1,), dtype="float32", seed=self.seed_generator
            )
            if self.kmeans_init:
                self._initialize(fixed, weights, ones, noise)

        codebook = self.codebook  # what this call quantizes with: the table before the update
        indices = nearest_codes(fixed, codebook)  # (N,)
        q = ops.take(codebook, indices, axis=0)  # (N, D)

        counts, sums = code_statistics(fixed, indices, ones, self.num_embeddings)
        self.batch_counts.assign(counts)
        if learns:
            self._update(counts, sums)
            if self.restart_threshold is not None:
                self._restart(fixed, weights, noise)

        error = self.commitment_cost * (vectors - ops.stop_gradient(q)) ** 2  # 1711.00937, eq. 3
        if self.codebook_type == "gradient":
            error = error + (q - fixed) ** 2
        error = ops.reshape(ops.mean(error, axis=-1), (shape[0], -1))  # (B, P)
        if weights is None:
            loss = ops.mean(error, axis=-1)
        else:
            valid = ops.reshape(weights, ops.shape(error))
            loss = ops.sum(error * valid, axis=-1) / ops.maximum(ops.sum(valid, axis=-1), 1.0)

        output = (rotation_trick if self.gradient == "rotation" else straight_through)(vectors, q)
        if weights is not None:
            output = ops.where(weights[:, None] > 0, output, 0.0)
        return ops.cast(ops.reshape(output, shape), self.compute_dtype), loss

    def encode(self, z, mask=None):
        """Return the index of the code nearest to each vector.

        Args:
            z: vectors `(B, *grid, embedding_dim)`.
            mask: bool `(B, *grid)`, False for padding. Default: all count.

        Returns:
            int32 indices `(B, *grid)`, -1 where the mask is False.
        """
        vectors, weights = self._flatten(z, mask)
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

    def _flatten(self, z, mask):
        """Float32 vectors (N, D), unit where cosine, zero where masked, and weights (N,), None without a mask."""
        z = ops.cast(z, "float32")
        self._check_shape(z.shape)
        vectors, weights = ops.reshape(z, (-1, self.embedding_dim)), None
        if mask is not None:
            if len(mask.shape) != len(z.shape) - 1:
                raise ValueError(
                    "`mask` must have the shape of `z` without its last axis. "
                    f"Received: mask.shape={tuple(mask.shape)}, z.shape={tuple(z.shape)}"
                )
            weights = ops.reshape(ops.cast(mask, "float32"), (-1,))
            vectors = ops.where(weights[:, None] > 0, vectors, 0.0)  # padding may hold anything, NaN too
        return (unit(vectors) if self.distance == "cosine" else vectors), weights

    # === Learning ===

    def _initialize(self, vectors, weights, ones, noise):
        """Place all codes by k-means, in the first step with a vector that counts."""
        everywhere = ops.ones((self.num_embeddings,), "bool")
        any_valid = ops.sum(ones) > 0
        first = ops.logical_and(self.initialized < 0.5, any_valid)

        def start():
            drawn, _ = draw_vectors(vectors, weights, everywhere, noise)
            return kmeans(vectors, ones, drawn, rounds=KMEANS_ROUNDS, spherical=self.distance == "cosine")

        def keep():
            return ops.zeros((self.num_embeddings, self.embedding_dim)), ops.zeros((self.num_embeddings,))

        codes, counts = ops.cond(first, start, keep)
        # A code without a vector (a batch of few) counts as one, or its sum would move it to the origin.
        self._place(ops.logical_and(first, everywhere), codes, ops.maximum(counts, 1.0))
        self.initialized.assign(ops.maximum(self.initialized, ops.cast(any_valid, "float32")))

    def _update(self, counts, sums):
        """Move count and sum towards those of the batch; a batch without a vector that counts changes nothing."""
        decay = ops.where(ops.sum(counts) > 0, self.decay, 1.0)
        self.count.assign(decay * self.count + (1.0 - decay) * counts)  # 1711.00937, eq. 6
        if self.codebook_type == "ema":
            self.total.assign(decay * self.total + (1.0 - decay) * sums)  # eq. 7

    def _restart(self, vectors, weights, noise):
        """Draw the codes that hardly any vector chooses anew from the batch."""
        share = ops.mean(self.count)
        dead = self.count < self.restart_threshold * share
        drawn, granted = draw_vectors(vectors, weights, dead, noise)
        self._place(granted, drawn, RESTART_COUNT * share)

    def _place(self, where, codes, count):
        """Set the codes (K, D) and their moving count, where (K,) says so."""
        count = ops.broadcast_to(count, ops.shape(self.count))
        if self.codebook_type == "ema":
            state, value = self.total, codes * count[:, None]
        else:
            state, value = self.origin, codes - self.embeddings
        self.count.assign(ops.where(where, count, self.count.value))
        state.assign(ops.where(where[:, None], value, state.value))

    # === Shapes ===

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

    # === Config ===

    def get_config(self):
        return {
            **super().get_config(),
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "codebook": self.codebook_type,
            "commitment_cost": self.commitment_cost,
            "decay": self.decay,
            "epsilon": self.epsilon,
            "gradient": self.gradient,
            "distance": self.distance,
            "kmeans_init": self.kmeans_init,
            "restart_threshold": self.restart_threshold,
            "seed": self.seed,
        }


def _check_integer(name, value):
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    if value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return int(value)


def _check_choice(name, value, choices):
    if value not in choices:
        expected = " or ".join(f'"{c}"' for c in choices)
        raise ValueError(f"`{name}` must be {expected}. Received: {name}={value!r}")
