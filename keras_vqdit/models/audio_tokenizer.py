"""AudioTokenizer: a VQ-VAE of waveforms, which sees and makes them as spectrograms."""

import math

import keras
from keras import layers

from keras_vqdit.checks import positive_integer
from keras_vqdit.layers.residual_quantizer import ResidualQuantizer
from keras_vqdit.layers.spectrogram import InverseSpectrogram, LogSpectrogram
from keras_vqdit.models.backbones import residual_blocks
from keras_vqdit.models.spectral_loss import SpectralLoss
from keras_vqdit.models.vqvae import VQVAE

# name -> arguments of `AudioTokenizer.from_size`. Of pairs, the first is the encoder's and the second the decoder's.
SIZES = {
    # 6144 samples (0.77 s at 8 kHz) -> 48 x 4 codes out of 256: 2,000 bits a second.
    "speech": {
        "input_shape": (6144, 1),
        "sample_rate": 8000,
        "num_levels": 4,
        "num_embeddings": 256,
        "embedding_dim": 32,
        "window_size": 256,
        "hop": 64,
        "fold": 2,
        "filters": (128, 192),
        "num_residual_blocks": (2, 4),
        "residual_filters": (64, 128),
        "num_iterations": 4,
    },
}


@keras.saving.register_keras_serializable("keras_vqdit")
class AudioTokenizer(VQVAE):
    """VQ-VAE of waveforms: turns sound into a few codes a frame, coarse to fine, and back.

    The encoder sees the logarithm of the spectrogram, for the codes have no bits to spend on phases; the decoder makes
    magnitudes and phases, which an inverse Fourier transform turns into a waveform. The quantizer is a
    `ResidualQuantizer`, whose level 0 is the coarsest. `compile` takes `SpectralLoss` where it is told no other loss; all else
    is as in `VQVAE`.

    Args:
        encoder: layer or model from waveforms `(B, T, 1)` to latents `(B, frames, embedding_dim)`.
        decoder: layer or model from latents to waveforms.
        num_embeddings: number of codes of each level.
        embedding_dim: channels of a code.
        sample_rate: samples a second, in Hz. Defaults to 8000.
        quantizer: layer with the contract of `VectorQuantizer`. Defaults to a `ResidualQuantizer` of 4 levels.
        modality: key of the data in a data set of dicts. Defaults to `"audio"`.

    Call arguments:
        inputs: floats `(B, T, 1)` in [-1, 1], or a dict with the modality.
        training: whether codebooks and latent statistics learn.

    Returns:
        Tuple of the reconstruction `(B, T, 1)` and the quantization error, float32 `(B,)`.

    Raises:
        ValueError: as of `VQVAE`, or if `sample_rate` is no positive integer.

    Example:

    ```python
    from keras_vqdit import AudioTokenizer, data

    train, test = data.load("spoken_digit", audio_length=6144, audio_copies=8)
    tokenizer = AudioTokenizer.from_size("speech")
    tokenizer.compile("adam")
    tokenizer.fit(train, validation_data=test, epochs=10)
    codes = tokenizer.encode(next(iter(test)))  # int32 (64, 48, 4)
    audio = tokenizer.decode(codes)  # (64, 6144, 1)
    ```

    References:
        - Zeghidour et al., [SoundStream](https://arxiv.org/abs/2107.03312)
        - Siuzdak, [Vocos](https://arxiv.org/abs/2306.00814)
    """

    def __init__(
        self,
        encoder,
        decoder,
        num_embeddings,
        embedding_dim,
        *,
        sample_rate=8000,
        quantizer=None,
        modality="audio",
        dtype=None,
        **kwargs,
    ):
        sample_rate = positive_integer("sample_rate", sample_rate)
        if quantizer is None:
            quantizer = ResidualQuantizer(4, num_embeddings, embedding_dim, dtype=dtype)
        super().__init__(
            encoder,
            decoder,
            num_embeddings,
            embedding_dim,
            quantizer=quantizer,
            modality=modality,
            dtype=dtype,
            **kwargs,
        )
        self.sample_rate = sample_rate

    @classmethod
    def from_size(cls, name, *, quantizer=None, modality="audio", dtype=None, **overrides):
        """A model of a size by name.

        Args:
            name: `"speech"`: 6,144 samples at 8 kHz to 48 frames of 4 codes out of 256.
            quantizer, modality, dtype: as in the constructor.
            **overrides: of the size: `input_shape`, `sample_rate`, `num_levels`, `num_embeddings`, `embedding_dim`;
                `window_size`, `hop`, `fold`, `num_iterations` of the spectrograms, see `InverseSpectrogram`; and `filters`,
                `num_residual_blocks`, `residual_filters`, each one value for encoder and decoder, or a pair.

        Returns:
            A new `AudioTokenizer`, built.

        Raises:
            ValueError: if there is no such size, an override is unknown, or not of encoder and decoder.

        Example:
        >>> AudioTokenizer.from_size("speech").code_shape
        (48, 4)
        """
        if name not in SIZES:
            raise ValueError(f"`name` must be one of {sorted(SIZES)}. Received: name={name!r}")
        if unknown := sorted(set(overrides) - set(SIZES[name])):
            raise ValueError(f"The overrides of a size are {sorted(SIZES[name])}. Received: {unknown}")
        options = {**SIZES[name], **overrides}
        levels, codes, channels = (options[key] for key in ("num_levels", "num_embeddings", "embedding_dim"))
        if quantizer is None:
            quantizer = ResidualQuantizer(levels, codes, channels, dtype=dtype)
        spectrogram = {key: options[key] for key in ("window_size", "hop", "fold")}
        stages = [_stage(options, side) for side in range(2)]
        encoder = build_audio_encoder(options["input_shape"], channels, **spectrogram, **stages[0], dtype=dtype)
        decoder = build_audio_decoder(
            encoder.output_shape[1:],
            **spectrogram,
            **stages[1],
            num_iterations=options["num_iterations"],
            dtype=dtype,
        )
        rate = options["sample_rate"]
        return cls(
            encoder, decoder, codes, channels, sample_rate=rate, quantizer=quantizer, modality=modality, dtype=dtype
        )

    def compile(self, optimizer="adam", loss=None, **kwargs):
        """Configure training, as in `VQVAE`; the loss defaults to `SpectralLoss()`."""
        super().compile(optimizer=optimizer, loss=SpectralLoss() if loss is None else loss, **kwargs)

    @property
    def bits_per_second(self):
        """Bits that the codes of a second of sound take."""
        codes = math.prod(self.code_shape) / self.example_shape[0]  # a sample
        return codes * math.log2(self.num_embeddings) * self.sample_rate

    def get_config(self):
        return {**super().get_config(), "sample_rate": self.sample_rate}


def build_audio_encoder(
    input_shape,
    latent_channels,
    *,
    window_size=256,
    hop=64,
    fold=2,
    filters=128,
    num_residual_blocks=2,
    residual_filters=64,
    activation="silu",
    dtype=None,
    name="encoder",
):
    """Encoder of waveforms: `LogSpectrogram`, then residual blocks at the rate of the codes.

    Args:
        input_shape: `(samples, 1)`, a multiple of `fold * hop` samples.
        latent_channels: number of output channels.
        window_size, hop, fold: of the spectrogram, see `LogSpectrogram`. Default to 256, 64 and 2.
        filters: number of channels. Defaults to 128.
        num_residual_blocks: number of blocks. Defaults to 2.
        residual_filters: their inner channels. Defaults to 64.
        activation: name or function. Defaults to `"silu"`.
        dtype: dtype policy of the layers; the spectrogram is float32 under each.
        name: name of the model.

    Returns:
        `keras.Model` from `(B, samples, 1)` to `(B, samples / (fold * hop), latent_channels)`.

    Raises:
        ValueError: as of `LogSpectrogram`.

    Example:
    >>> build_audio_encoder((6144, 1), 32).output_shape
    (None, 48, 32)
    """
    x = inputs = keras.Input(input_shape, name="data")
    x = LogSpectrogram(window_size, hop, fold=fold, dtype=dtype, name="spectrogram")(x)
    x = layers.Dense(filters, dtype=dtype, name="from_spectrogram")(x)
    stage = _blocks(filters, num_residual_blocks, residual_filters)
    x = residual_blocks(x, stage, activation, None, {"rank": 1, "dtype": dtype})
    x = layers.Dense(latent_channels, dtype=dtype, name="to_latents")(x)
    return keras.Model(inputs, x, name=name)


def build_audio_decoder(
    latent_shape,
    *,
    window_size=256,
    hop=64,
    fold=2,
    filters=192,
    num_residual_blocks=4,
    residual_filters=128,
    num_iterations=4,
    activation="silu",
    dtype=None,
    name="decoder",
):
    """Decoder of waveforms: residual blocks at the rate of the codes, then `InverseSpectrogram`.

    Args:
        latent_shape: `(frames, channels)`, the encoder's output.
        window_size, hop, fold: as of `build_audio_encoder`.
        filters: number of channels. Defaults to 192.
        num_residual_blocks: number of blocks, which normalise each example. Defaults to 4.
        residual_filters: their inner channels. Defaults to 128.
        num_iterations: of `InverseSpectrogram`. Defaults to 4.
        activation, dtype, name: as of `build_audio_encoder`.

    Returns:
        `keras.Model` from `(B, frames, channels)` to `(B, frames * fold * hop, 1)`, in float32 under every dtype policy.

    Example:
    >>> build_audio_decoder((48, 32)).output_shape
    (None, 6144, 1)
    """
    x = inputs = keras.Input(latent_shape, name="latents")
    x = layers.Conv1D(filters, 3, padding="same", dtype=dtype, name="from_latents")(x)
    stage = _blocks(filters, num_residual_blocks, residual_filters)
    x = residual_blocks(x, stage, activation, 1, {"rank": 1, "dtype": dtype})
    # A magnitude and a phase for each frequency.
    x = layers.Dense(fold * (window_size + 2), dtype=dtype, name="to_spectrogram")(x)
    x = InverseSpectrogram(window_size, hop, fold=fold, num_iterations=num_iterations, dtype=dtype, name="waveform")(x)
    return keras.Model(inputs, x, name=name)


def _blocks(filters, num_residual_blocks, residual_filters):
    """A stage of `backbones.residual_blocks`."""
    return {
        "filters": filters,
        "num_residual_blocks": num_residual_blocks,
        "residual_filters": residual_filters,
    }


def _stage(options, side):
    """The blocks of the encoder, side 0, or of the decoder, side 1."""
    found = {}
    for name in ("filters", "num_residual_blocks", "residual_filters"):
        pair = options[name] if isinstance(options[name], (tuple, list)) else (options[name],) * 2
        if len(pair) != 2:
            raise ValueError(
                f"`{name}` must be one value, or a pair of the encoder's and the decoder's. Received: {options[name]}"
            )
        found[name] = pair[side]
    return found
