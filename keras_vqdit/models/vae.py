"""VAE: an auto-encoder whose latents are Gaussian, for generation from noise and for continuous diffusion."""

import keras
from keras import ops

from keras_vqdit.checks import number, positive_integer
from keras_vqdit.models import backbones
from keras_vqdit.models.autoencoder import Autoencoder


def gaussian_kl(mean, log_variance):
    """Kullback-Leibler divergence of N(mean, exp(log_variance)) from N(0, 1), summed over each example.

    Args:
        mean: tensor `(B, …)`.
        log_variance: tensor `(B, …)`.

    Returns:
        Nats, float32 `(B,)`: ½ Σ (μ² + σ² − 1 − log σ²).  # Kingma & Welling (1312.6114), appendix B

    Example:
    >>> import numpy as np
    >>> float(gaussian_kl(np.full((1, 4), 2.0), np.zeros((1, 4)))[0])
    8.0
    """
    mean, log_variance = ops.cast(mean, "float32"), ops.cast(log_variance, "float32")
    terms = mean * mean + ops.exp(log_variance) - 1.0 - log_variance
    return 0.5 * ops.sum(terms, axis=tuple(range(1, len(mean.shape))))


@keras.saving.register_keras_serializable("keras_vqdit")
class VAE(Autoencoder):
    """Variational auto-encoder with a Gaussian latent space.

    `fit` minimises the reconstruction loss plus `kl_weight` times the divergence from N(0, 1); it takes the data in the same ways
    as `VQVAE`. The logs tell `loss`, `reconstruction_loss` and `kl_loss` (nats an example, unweighted).

    As a tokenizer it offers `encode_latents` and `decode_latents`, normalised by statistics learned with the weights, and
    `encode` and `decode` between data and the mean of the latents; `decode(encode(x))` equals `call(x)[0]`.

    Args:
        encoder: layer or model from data `(B, …, C)` to `(B, …, 2 * latent_dim)`: mean, then log-variance.
        decoder: layer or model from latents `(B, …, latent_dim)` to reconstructions of the data.
        latent_dim: channels of the latents.
        kl_weight: weight of the divergence in the loss. The mean squared error of D values makes the evidence lower bound
            of a Gaussian observation with variance s² at `kl_weight = 2 s² / D`. Defaults to 0.001.
        modality: key of the data in a data set of dicts: `"image"`, `"audio"`, `"video"`. Defaults to `"image"`.
        seed: integer for the random latents in training. Defaults to `None`.

    Call arguments:
        inputs: floats `(B, …, C)`, or a dict with the modality.
        training: latents are drawn in training, and are the mean in inference.

    Returns:
        Tuple of the reconstruction `(B, …, C)` and the divergence in nats, float32 `(B,)`.

    Raises:
        ValueError: if the encoder's output has not `2 * latent_dim` channels, an argument has an impossible value, or
            the data are integers.

    Example:

    ```python
    import numpy as np
    from keras import Sequential, layers
    from keras_vqdit.models.vae import VAE

    encoder = Sequential([layers.Input((28, 28, 1)), layers.Flatten(), layers.Dense(64, "relu"), layers.Dense(2 * 8)])
    decoder = Sequential([layers.Input((8,)), layers.Dense(64, "relu"), layers.Dense(784), layers.Reshape((28, 28, 1))])
    model = VAE(encoder, decoder, latent_dim=8)
    images = np.random.default_rng(0).uniform(-1, 1, (64, 28, 28, 1)).astype("float32")
    model.compile("adam")
    model.fit(images, verbose=0)
    new_images = model.generate(4, seed=0)  # (4, 28, 28, 1)
    ```

    References:
        - Kingma and Welling, [Auto-Encoding Variational Bayes](https://arxiv.org/abs/1312.6114)
        - Rombach et al., [High-Resolution Image Synthesis with Latent Diffusion
          Models](https://arxiv.org/abs/2112.10752): a small weight of the divergence for diffusion on the latents
    """

    penalty_name = "kl_loss"
    # Outside of this range the variance is 0 or overflows; as in the official latent diffusion.
    log_variance_range = (-30.0, 20.0)

    def __init__(self, encoder, decoder, latent_dim, *, kl_weight=1e-3, modality="image", seed=None, **kwargs):
        super().__init__(encoder, decoder, modality=modality, **kwargs)
        latent_dim = positive_integer("latent_dim", latent_dim)
        number("kl_weight", kl_weight, 0)
        self.latent_dim, self.kl_weight, self.seed = latent_dim, kl_weight, seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._build_if_known()

    @classmethod
    def from_size(cls, name, *, latent_dim=None, kl_weight=1e-3, modality="image", seed=None, dtype=None, **overrides):
        """A model of a size by name.

        Args:
            name: `"digits"`: 28 x 28 x 1 to 7 x 7 latents of 4 channels.
            latent_dim: channels of the latents. Defaults to the size's.
            kl_weight, modality, seed, dtype: as in the constructor.
            **overrides: of the size: `input_shape`, and the arguments of `build_encoder`.

        Returns:
            A new `VAE`, built.

        Raises:
            ValueError: if there is no such size.
            TypeError: for options that are none of `build_encoder`.

        Example:
        >>> VAE.from_size("digits", latent_dim=4).latent_shape
        (7, 7, 4)
        """
        options = backbones.size(name)
        channels, _ = options.pop("embedding_dim"), options.pop("num_embeddings")  # a VAE has no codes
        channels = channels if latent_dim is None else latent_dim
        options |= overrides
        shape = options.pop("input_shape")
        encoder = backbones.build_encoder(shape, 2 * channels, dtype=dtype, **options)
        decoder = backbones.build_decoder(shape, channels, dtype=dtype, **options)
        return cls(encoder, decoder, channels, kl_weight=kl_weight, modality=modality, seed=seed, dtype=dtype)

    @property
    def embedding_dim(self):
        """Channels of the latents, by the tokenizer's name for it."""
        return self.latent_dim

    @property
    def latent_channels(self):
        return self.latent_dim

    @property
    def encoder_channels(self):
        return 2 * self.latent_dim

    @property
    def penalty_weight(self):
        return self.kl_weight

    def channels_message(self, encoded):
        return (
            f"The encoder must give 2 * `latent_dim` channels, {2 * self.latent_dim}: the mean and the log-variance. "
            f"Received: latent_dim={self.latent_dim}, encoder output of shape {encoded}, with {encoded[-1]} channels"
        )

    def call(self, inputs, training=False):
        mean, log_variance = self.posterior(self._data(inputs), training=training)
        z = mean
        if training:
            if self.trainable:
                self.statistics.update(mean)
            # z = μ + σε, Kingma & Welling (1312.6114), eq. 10
            noise = keras.random.normal(ops.shape(mean), dtype="float32", seed=self.seed_generator)
            z = mean + ops.exp(0.5 * log_variance) * noise
        return self.decoder(z, training=training), gaussian_kl(mean, log_variance)

    def posterior(self, x, training=False):
        """Mean and log-variance of the latents of data, two float32 tensors `(B, …, latent_dim)`."""
        encoded = ops.cast(self.encoder(x, training=training), "float32")
        mean, log_variance = ops.split(encoded, 2, axis=-1)
        return mean, ops.clip(log_variance, *self.log_variance_range)

    def posterior_mean(self, x):
        return self.posterior(x)[0]

    # === Tokenizer ===

    def encode(self, x):
        """The mean of the latents `(B, …, latent_dim)` of data or of a dict with the modality, not normalised."""
        return self.posterior_mean(self._data(x))

    def decode(self, z):
        """Decode latents as `encode` gives them."""
        return self.decoder(z, training=False)

    def decode_latents(self, z):
        """Decode what `encode_latents` gives, or a diffusion model draws: normalised latents `(B, …, latent_dim)`."""
        return self.decode(self.statistics.denormalize(z))

    def generate(self, num_samples, *, seed=None):
        """Draw new data: the decoder applied to latents from N(0, 1).

        Args:
            num_samples: number of examples.
            seed: integer; the same seed draws the same examples. Defaults to `None`: other ones at each call.

        Returns:
            Data `(num_samples, …, C)`.

        Raises:
            ValueError: if the model has not been built, by training or a call.
        """
        if not self.built:
            raise ValueError("The shape of the latents is not known before the model is built. Call it on data first.")
        num_samples = positive_integer("num_samples", num_samples)
        z = keras.random.normal((num_samples, *self.latent_shape), dtype="float32", seed=seed)
        return self.decode(z)

    def get_config(self):
        return {
            **super().get_config(),
            "latent_dim": self.latent_dim,
            "kl_weight": self.kl_weight,
            "seed": self.seed,
        }
