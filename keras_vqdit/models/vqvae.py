"""VQVAE: an auto-encoder whose latents are entries of a learned codebook, which makes it a tokenizer."""

import keras

from keras_vqdit.layers.vector_quantizer import VectorQuantizer
from keras_vqdit.metrics.codebook import CodebookPerplexity, CodebookUsage
from keras_vqdit.models import backbones
from keras_vqdit.models.autoencoder import Autoencoder


@keras.saving.register_keras_serializable("keras_vqdit")
class VQVAE(Autoencoder):
    """Vector-quantized auto-encoder: turns images, sound or video into a small grid of codes, and back.

    `fit` minimises the reconstruction loss plus the quantizer's. The logs tell `loss`, `reconstruction_loss`,
    `quantization_loss`, and over the whole epoch `codebook_usage` (share of the codes that were used) and `perplexity`.

    It is trained by any of

    - `fit(x)`, `fit(x, x)`: arrays;
    - `fit(noisy, clean)`: a reconstruction of something else;
    - `fit(dataset)`: batches that are dicts with the key `modality`; other keys, such as labels, are ignored.

    As a tokenizer it offers `encode` and `decode` (codes), `encode_latents` and `decode_latents` (the continuous space of
    diffusion models, normalised by statistics that are learned with the weights), and
    `decode(encode(x))` equals `call(x)[0]`.

    Args:
        encoder: layer or model from data `(B, *spatial, C)` to latents `(B, *grid, embedding_dim)`.
        decoder: layer or model from latents to reconstructions of the data.
        num_embeddings: number of codes.
        embedding_dim: channels of a code.
        quantizer: layer with the contract of `VectorQuantizer`. Defaults to `VectorQuantizer(num_embeddings, embedding_dim)`.
        modality: key of the data in a data set of dicts: `"image"`, `"audio"`, `"video"`. Defaults to `"image"`.

    Call arguments:
        inputs: floats `(B, *spatial, C)`, or a dict with the modality. The range is what the decoder shall restore, in this
            package [-1, 1].
        training: whether codebook and latent statistics learn.

    Returns:
        Tuple of the reconstruction `(B, *spatial, C)` and the quantization error, float32 `(B,)`, weighted as in the loss.

    Raises:
        ValueError: if the encoder's output has not `embedding_dim` channels, the quantizer other sizes, or the data
            are integers.

    Example:

    ```python
    import numpy as np
    from keras import Sequential, layers
    from keras_vqdit.models.vqvae import VQVAE

    encoder = Sequential([layers.Input((28, 28, 1)), layers.Conv2D(16, 4, 4, activation="relu"), layers.Conv2D(4, 1)])
    decoder = Sequential([layers.Input((7, 7, 4)), layers.Conv2DTranspose(1, 4, 4)])
    model = VQVAE(encoder, decoder, num_embeddings=32, embedding_dim=4)
    images = np.random.default_rng(0).uniform(-1, 1, (64, 28, 28, 1)).astype("float32")
    model.compile("adam")
    model.fit(images, verbose=0)
    codes = model.encode(images)  # int32 (64, 7, 7)
    reconstruction = model.decode(codes)  # (64, 28, 28, 1)
    ```

    References:
        - van den Oord et al., [Neural Discrete Representation Learning](https://arxiv.org/abs/1711.00937)
        - Razavi et al., [Generating Diverse High-Fidelity Images with VQ-VAE-2](https://arxiv.org/abs/1906.00446)
    """

    parts = (*Autoencoder.parts, "quantizer")
    penalty_name = "quantization_loss"
    code_name, code_dtype = "codes", "int32"

    def __init__(self, encoder, decoder, num_embeddings, embedding_dim, *, quantizer=None, modality="image", **kwargs):
        super().__init__(encoder, decoder, modality=modality, **kwargs)
        if quantizer is None:
            quantizer = VectorQuantizer(num_embeddings, embedding_dim, dtype=self.dtype_policy)
        elif not isinstance(quantizer, keras.layers.Layer) or not hasattr(quantizer, "encode"):
            raise TypeError(
                f"`quantizer` must be a layer as `VectorQuantizer` is one. Received: quantizer={quantizer!r}"
            )
        for name, value in [("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim)]:
            if getattr(quantizer, name, value) != value:
                raise ValueError(
                    f"`{name}` must be that of the quantizer, {getattr(quantizer, name)}. Received: {name}={value}"
                )
        self.vq = quantizer
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.num_levels = getattr(quantizer, "num_levels", None)  # of a `ResidualQuantizer`
        self.usage = CodebookUsage(num_embeddings, self.num_levels, name="codebook_usage")
        self.perplexity = CodebookPerplexity(num_embeddings, self.num_levels, name="perplexity")
        self._build_if_known()

    @classmethod
    def from_size(cls, name, *, quantizer=None, modality="image", dtype=None, **overrides):
        """A model of a size by name.

        Args:
            name: `"digits"`: 28 x 28 x 1 to 7 x 7 codes out of 512.
            quantizer, modality, dtype: as in the constructor.
            **overrides: of the size: `input_shape`, `num_embeddings`, `embedding_dim`, and the arguments of
                `build_encoder`, such as `filters` or `num_residual_blocks`.

        Returns:
            A new `VQVAE`, built.

        Raises:
            ValueError: if there is no such size.

        Example:
        >>> VQVAE.from_size("digits", num_embeddings=256).latent_shape
        (7, 7, 4)
        """
        options = backbones.size(name, **overrides)
        shape, codes = options.pop("input_shape"), options.pop("num_embeddings")
        channels = options.pop("embedding_dim")
        encoder = backbones.build_encoder(shape, channels, dtype=dtype, **options)
        decoder = backbones.build_decoder(shape, channels, dtype=dtype, **options)
        return cls(encoder, decoder, codes, channels, quantizer=quantizer, modality=modality, dtype=dtype)

    @property
    def latent_channels(self):
        return self.embedding_dim

    @property
    def encoder_channels(self):
        return self.embedding_dim

    def channels_message(self, encoded):
        return (
            f"The encoder must give `embedding_dim` channels, {self.embedding_dim}: end it with a layer such as "
            f"`Dense({self.embedding_dim})`. Received: encoder output of shape {encoded}, with {encoded[-1]} channels"
        )

    @property
    def code_shape(self):
        """Shape of the codes of one example: `(*grid)`, with a `ResidualQuantizer` of L levels `(*grid, L)`."""
        return (*self.latent_shape[:-1], *([] if self.num_levels is None else [self.num_levels]))

    def build_latents(self, latent_shape):
        if not self.vq.built:
            self.vq.build(latent_shape)

    def call(self, inputs, training=False):
        z = self.encoder(self._data(inputs), training=training)
        if training and self.trainable:
            self.statistics.update(z)
        quantized, error = self.vq(z, training=training)
        return self.decoder(quantized, training=training), error

    def endpoints(self):
        found = super().endpoints()
        found["decode"] = found["decode"]._replace(ranges={"codes": (0, self.num_embeddings - 1)})
        return found

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        self.usage.update_state(self.vq.batch_counts)
        self.perplexity.update_state(self.vq.batch_counts)
        return loss

    # === Tokenizer ===

    def encode(self, x):
        """Encode data into codes.

        Args:
            x: data `(B, *spatial, C)`, or a dict with the modality.

        Returns:
            Codes, int32 `(B, *code_shape)`: `(B, *grid)`, with a `ResidualQuantizer` of L levels `(B, *grid, L)`.
        """
        return self.vq.encode(self.posterior_mean(self._data(x)))

    def decode(self, codes):
        """Decode codes into data: `decode(encode(x))` is `call(x)[0]`.

        Args:
            codes: integers, as `encode` gives them.

        Returns:
            Data `(B, *spatial, C)`.
        """
        return self.decoder(self.vq.decode(codes), training=False)

    def decode_latents(self, z, quantize=True):
        """Decode what `encode_latents` gives, or a diffusion model draws.

        Args:
            z: normalised latents `(B, *grid, embedding_dim)`.
            quantize: whether each latent is first moved to its nearest code, as the decoder knows them from training.
                Defaults to `True`.

        Returns:
            Data `(B, *spatial, C)`.
        """
        z = self.statistics.denormalize(z)
        return self.decode(self.vq.encode(z)) if quantize else self.decoder(z, training=False)

    def posterior_mean(self, x):
        return self.encoder(x, training=False)

    def get_config(self):
        return {
            **super().get_config(),
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "quantizer": keras.saving.serialize_keras_object(self.vq),
        }
