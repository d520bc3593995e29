"""Vector quantization: each vector becomes the nearest code of a learned table."""

import keras
from keras import ops

from keras_vqdit.checks import number, one_of
from keras_vqdit.layers.codebook import code_statistics, draw_vectors, kmeans, moving_codebook, unit
from keras_vqdit.layers.gradient_estimators import rotation_trick, straight_through
from keras_vqdit.layers.nearest_code import nearest_codes
from keras_vqdit.layers.quantizer import Quantizer
from keras_vqdit.layers.replicas import defer, learning_is_deferred

KMEANS_ROUNDS = 10
# The moving count that a drawn code starts with, as a fraction of the mean: enough to wait some 20 steps for its first
# vector, little enough to follow its vectors at once.
RESTART_COUNT = 0.3


@keras.saving.register_keras_serializable("keras_vqdit")
class VectorQuantizer(Quantizer):
    r"""Replace each vector by the nearest of `num_embeddings` codes, which learn to lie where the vectors are.

    The `"ema"` codebook follows the vectors by moving averages, count n and sum m of the vectors z that chose a code,

        n ← γn + (1 − γ)c,   m ← γm + (1 − γ)Σz,   e = m/ñ,   ñ = (n + ε)/(Σn + Kε)·Σn,

    and its loss is the commitment β·mean((z − sg e)²) alone. The `"gradient"` codebook is trained by the optimizer, with
    the loss mean((e − sg z)²) + β·mean((z − sg e)²). Either starts at k-means of the first batch, and a code that
    hardly any vector chooses is drawn anew from the batch. Codes learn only in training, and only while the layer is
    trainable; a call quantizes with the codes from before its own update.

    `batch_counts`, a weight `(K,)`, tells how many vectors chose each code in the last call, in training and out of
    it: what `CodebookUsage` and `CodebookPerplexity` add up over an epoch.

    Args:
        num_embeddings: number of codes K, a positive integer.
        embedding_dim: length D of a vector, a positive integer.
        codebook: `"ema"` or `"gradient"`, how the codes learn. Default: `"ema"`.
        commitment_cost: β ≥ 0, weight of the term that holds the vectors to their codes. Default: 0.25.
        decay: γ in [0, 1) of the moving averages; `"gradient"` uses it to count only. Default: 0.95, a memory of
            20 steps, which follows an encoder that still moves; 0.99 suits long training.
        epsilon: ε > 0, smoothing of the counts. Default: 1e-5.
        gradient: `"rotation"` or `"straight_through"`, how the output's gradient reaches the vectors.
            Default: `"rotation"`.
        distance: `"euclidean"` or `"cosine"`. With cosine, vectors and codes are compared, averaged and returned at unit
            length. Default: `"euclidean"`.
        kmeans_init: whether the codes start at k-means (10 rounds) of the first batch in training. Without, they start
            at random, with standard deviation 0.05. Default: True.
        restart_threshold: a code is drawn anew where its moving count falls below this fraction of the mean count,
            which scales with the vectors per step and the number of codes: in [0, 1), or None for never. Default: 0.1.
        seed: integer for the start and the draws. Default: None, a random one.
        **kwargs: of `keras.layers.Layer`. Under every `dtype` policy all numbers but the output are float32.

    Call arguments:
        z: vectors `(B, *grid, D)`, with any number of grid axes, none included.
        mask: bool `(B, *grid)`, False for padding, which counts for nothing: no loss, no count, no draw.
            Default: the mask that comes with `z`, else all count.
        training: bool, whether the codes learn.

    Returns:
        `(quantized, loss)`: the codes `(B, *grid, D)` of the compute dtype, 0 where masked; and float32 `(B,)`, one
        weighted loss an example, the mean over its positions that count and over D.

    Raises:
        ValueError: if an argument is out of its range, or the last axis of `z` is not `embedding_dim` long.

    Example:

    >>> vq = VectorQuantizer(num_embeddings=256, embedding_dim=16)
    >>> z = np.random.default_rng(0).normal(size=(8, 7, 7, 16))
    >>> quantized, loss = vq(z, training=True)
    >>> tuple(quantized.shape), tuple(loss.shape)
    ((8, 7, 7, 16), (8,))
    >>> indices = vq.encode(z)  # int32 (8, 7, 7)
    >>> bool(np.all(vq.decode(indices) == vq(z)[0]))
    True

    References:
        - [Neural Discrete Representation Learning](https://arxiv.org/abs/1711.00937)
        - [Restructuring Vector Quantization with the Rotation Trick](https://arxiv.org/abs/2410.06424)
        - [Jukebox](https://arxiv.org/abs/2005.00341), section 3.1, for the restarts
    """

    def __init__(
        self,
        num_embeddings,
        embedding_dim,
        *,
        codebook="ema",
        commitment_cost=0.25,
        decay=0.95,
        epsilon=1e-5,
        gradient="rotation",
        distance="euclidean",
        kmeans_init=True,
        restart_threshold=0.1,
        seed=None,
        **kwargs,
    ):
        super().__init__(num_embeddings, embedding_dim, **kwargs)
        number("commitment_cost", commitment_cost, 0)
        number("decay", decay, 0, below=1)
        number("epsilon", epsilon, above=0)
        if restart_threshold is not None:
            number("restart_threshold", restart_threshold, 0, below=1)
        self.codebook_type = one_of("codebook", codebook, ("ema", "gradient"))
        self.commitment_cost = commitment_cost
        self.decay = decay
        self.epsilon = epsilon
        self.gradient = one_of("gradient", gradient, ("straight_through", "rotation"))
        self.distance = one_of("distance", distance, ("euclidean", "cosine"))
        self.kmeans_init = kmeans_init
        self.restart_threshold = restart_threshold
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    # === State ===

    def build(self, input_shape=None):
        super().build(input_shape)
        shape = (self.num_embeddings, self.embedding_dim)
        normal = keras.initializers.RandomNormal(stddev=0.05, seed=self.seed)
        if self.codebook_type == "gradient":
            # The codes are `embeddings + origin`: only the optimizer writes the one, only k-means and restarts the
            # other. (What `call` assigns to a trainable variable is lost under JAX.)
            self.embeddings = self.add_weight(
                name="embeddings", shape=shape, initializer=normal, dtype="float32", autocast=False
            )
            self.origin = self.add_state("origin", shape, "zeros")
        else:
            # State is the count and the sum, whose mean over replicas is exact. Both start as one vector a code.
            self.total = self.add_state("total", shape, normal)
        self.count = self.add_state("count", shape[:1], "ones")
        self.initialized = self.add_state("initialized", (), "zeros" if self.kmeans_init else "ones")

    @property
    def codebook(self):
        """The codes `(K, D)` that `call` and `decode` give, float32; of unit length where the distance is cosine."""
        if not self.built:
            self.build()
        if self.codebook_type == "gradient":
            # Of the product TensorFlow gives a dense gradient; of the weight itself slices, a code twice being two of them,
            # whose squares optimizers add up one by one.
            codes = (self.embeddings + self.origin) * 1.0
        else:
            codes = moving_codebook(self.count.value, self.total.value, self.epsilon)
        return unit(codes) if self.distance == "cosine" else codes

    # === Quantization ===

    def flatten(self, z, mask):
        vectors, weights = super().flatten(z, mask)
        return (unit(vectors) if self.distance == "cosine" else vectors), weights

    def call(self, z, mask=None, training=None):
        vectors, weights = self.flatten(z, mask)  # (N, D), (N,) or None
        fixed = ops.stop_gradient(vectors)
        examples, teaches = _finite_examples(fixed, weights)  # (N, D), (N,): a moving average never forgets a NaN
        learns = bool(training) and self.trainable
        restarts = learns and self.restart_threshold is not None
        if restarts or (learns and self.kmeans_init):
            noise = keras.random.uniform((self.num_embeddings + 1,), dtype="float32", seed=self.seed_generator)
        if learns and self.kmeans_init and not learning_is_deferred():
            self._initialize(examples, teaches, noise)

        codebook = self.codebook  # what this call quantizes with: the table before the update
        indices = nearest_codes(fixed, codebook)  # (N,)
        q = ops.take(codebook, indices, axis=0)  # (N, D)

        counts, sums = code_statistics(examples, indices, teaches, self.num_embeddings)
        self.batch_counts.assign(counts)
        if learns:
            seen = {"counts": counts[None], "sums": sums[None]}
            if restarts or self.kmeans_init:
                seen.update(vectors=examples, weights=teaches, noise=noise[None])
            if not defer(self, seen):
                self.learn(**seen)

        error = self.commitment_cost * (vectors - ops.stop_gradient(q)) ** 2  # 1711.00937, eq. 3
        if self.codebook_type == "gradient":
            error = error + (q - fixed) ** 2
        output = rotation_trick(vectors, q) if self.gradient == "rotation" else straight_through(vectors, q)
        return self.unflatten(z, output, error, weights)

    # === Learning ===

    @property
    def shared_seed_generators(self):
        """The generators that give the same numbers on every replica: what they draw is for all of them."""
        return (self.seed_generator,)

    def start(self, *, vectors=None, weights=None, noise=None, **_):
        """Place the codes by k-means, from the vectors of all replicas; arguments as in `learn`."""
        if self.kmeans_init:
            self._initialize(vectors, weights, noise[0])

    def learn(self, counts, sums, *, vectors=None, weights=None, noise=None):
        """Learn from a batch: that of one call, or the parts of all replicas, one after the other.

        Args:
            counts: `(R, K)`, how many vectors of each replica chose each code.
            sums: `(R, K, D)`, their sums.
            vectors: `(N, D)`, the vectors of all replicas.
            weights: `(N,)`, 1 for a vector that counts and 0 for one that does not.
            noise: `(R, K + 1)`, uniform random numbers, R times the same.
        """
        self._update(ops.sum(counts, axis=0), ops.sum(sums, axis=0))
        if self.restart_threshold is not None:
            self._restart(vectors, weights, noise[0])

    def _initialize(self, vectors, weights, noise):
        """Place all codes by k-means, in the first step with a vector that counts."""
        everywhere = ops.ones((self.num_embeddings,), "bool")
        any_valid = ops.sum(weights) > 0
        first = ops.logical_and(self.initialized < 0.5, any_valid)

        def start():
            drawn, _ = draw_vectors(vectors, weights, everywhere, noise)
            return kmeans(vectors, weights, drawn, rounds=KMEANS_ROUNDS, spherical=self.distance == "cosine")

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

    # === Config ===

    def get_config(self):
        return {
            **super().get_config(),
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


def _finite_examples(vectors, weights):
    """The vectors (N, D) and weights (N,) that a codebook learns from: of those that are not finite none counts."""
    finite = ops.all(ops.isfinite(vectors), axis=-1)
    count = ops.cast(finite, "float32")
    return ops.where(finite[:, None], vectors, 0.0), count if weights is None else weights * count
