"""What `VAE` and `VQVAE` share: reconstruction training by `fit`, and normalised latents."""

import keras
import numpy as np
from keras import ops

from keras_vqdit.checks import fits, positive_integer
from keras_vqdit.layers.latent_statistics import LatentStatistics
from keras_vqdit.saving import Endpoint, FromPreset
from keras_vqdit.training import DistributedModel


@keras.saving.register_keras_serializable("keras_vqdit")
class ExampleLoss(keras.losses.Loss):
    """A loss as one value an example, the mean over everything else, so that sample weights fit data of any rank.

    Args:
        loss: name, function of `(y_true, y_pred)`, or `keras.losses.Loss`; of the latter the values are taken before its
            own reduction.
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
    """

    def __init__(self, loss, *, reduction="sum_over_batch_size", name="reconstruction", **kwargs):
        super().__init__(name=name, reduction=reduction, **kwargs)
        self.loss = keras.losses.get(loss)

    def call(self, y_true, y_pred):
        values = (self.loss.call if isinstance(self.loss, keras.losses.Loss) else self.loss)(y_true, y_pred)
        values = ops.cast(values, "float32")
        if len(values.shape) < 2:
            return values
        return ops.mean(ops.reshape(values, (ops.shape(values)[0], -1)), axis=1)  # (B,)

    def get_config(self):
        return {**super().get_config(), "loss": keras.saving.serialize_keras_object(self.loss)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "loss": keras.saving.deserialize_keras_object(config["loss"])})


class Autoencoder(FromPreset, DistributedModel):
    """Base class of the auto-encoders: `call` returns `(reconstruction, penalty)`, `fit` minimises their sum.

    A subclass defines `call`, `latent_channels`, `encoder_channels`, `penalty_name`, and the tokenizer's `encode_latents` and
    `decode_latents`.

    Args:
        encoder: layer or model from data `(B, *spatial, C)` to latents.
        decoder: layer or model from latents to reconstructions of the data.
        modality: key of the data in a data set of dicts. Defaults to `"image"`.
    """

    # The layers among the constructor's arguments.
    parts = ("encoder", "decoder")
    # Name of the penalty in the logs, and what the penalty is multiplied by in the loss.
    penalty_name, penalty_weight = "penalty", 1.0

    def __init__(self, encoder, decoder, *, modality="image", **kwargs):
        # Inputs reach the encoder as they are: its own policy casts them, in `call` and in `encode` alike.
        super().__init__(autocast=False, **kwargs)
        for name, value in [("encoder", encoder), ("decoder", decoder)]:
            if not isinstance(value, keras.layers.Layer):
                raise TypeError(f"`{name}` must be a Keras layer or model. Received: {name}={value!r}")
        self.encoder, self.decoder, self.modality = encoder, decoder, modality
        self.statistics = LatentStatistics(name="latent_statistics")
        self.reconstruction_tracker = keras.metrics.Mean(name="reconstruction_loss")
        self.penalty_tracker = keras.metrics.Mean(name=self.penalty_name)
        self._mean_of_examples = ExampleLoss(_second)

    # === Shapes ===

    def _build_if_known(self):
        """Build at once where the encoder knows the shape of its input, so that a wrong encoder is told at construction."""
        if len(getattr(self.encoder, "inputs", None) or ()) == 1:
            self.build(tuple(self.encoder.inputs[0].shape))

    def build(self, input_shape):
        if self.built:
            return
        self.example_shape = self.data_shape(input_shape)[1:]
        self.latent_shape = self.compute_latent_shape(input_shape)[1:]
        latent = keras.KerasTensor((None, *self.latent_shape))
        self.build_latents(latent.shape)
        self.statistics.build(latent.shape)
        reconstruction, data_shape = self.decoder(latent), self.data_shape(input_shape)
        for expected, received in zip(data_shape[1:], reconstruction.shape[1:], strict=False):
            if None not in (expected, received) and expected != received:
                raise ValueError(
                    "`decoder` must give back the shape of the data. Received: data of shape "
                    f"{tuple(data_shape)}, encoded to {latent.shape}, decoded to {tuple(reconstruction.shape)}"
                )
        self.built = True

    def build_latents(self, latent_shape):
        """Build what stands between encoder and decoder."""

    def data_shape(self, input_shape):
        """The shape of the data, from that of an input or of a dict of inputs."""
        return tuple(self._pick(input_shape))

    def compute_latent_shape(self, input_shape):
        """Shape of the latents `(B, *grid, latent_channels)` of data of a shape.

        Raises:
            ValueError: if the encoder's channels are not those that the model needs.
        """
        shape = self.data_shape(input_shape)
        encoded = tuple(self.encoder(keras.KerasTensor(shape)).shape)
        if encoded[-1] != self.encoder_channels:
            raise ValueError(self.channels_message(encoded))
        return (*encoded[:-1], self.latent_channels)

    # === Data ===

    def _pick(self, inputs):
        """The entry of the modality, where the inputs are a dict."""
        if not isinstance(inputs, dict):
            return inputs
        if self.modality not in inputs:
            raise ValueError(
                f'The data must have a key "{self.modality}", the `modality` of this model. '
                f"Received: keys {sorted(inputs)}"
            )
        return inputs[self.modality]

    def _data(self, inputs):
        """The data as float32, out of a dict or not."""
        x = check_float(self._pick(inputs))
        if not self.built:  # the tokenizer's methods may come before any call
            self.build((None, *x.shape[1:]))
        return x

    # === Training ===

    def compile(self, optimizer="adam", loss="mse", **kwargs):
        """Configure training; all arguments but these two are those of `keras.Model.compile`.

        Args:
            optimizer: name or `keras.optimizers.Optimizer`. Defaults to `"adam"`.
            loss: of the reconstruction: name, function of `(y_true, y_pred)`, or `keras.losses.Loss`. It is averaged over
                each example. Defaults to `"mse"`.
            **kwargs: further arguments. `metrics` are applied to the reconstruction.
        """
        loss = loss if isinstance(loss, ExampleLoss) else ExampleLoss("mse" if loss is None else loss)
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        self._loss_of_examples = ExampleLoss(loss.loss, reduction="none")

    # Keras drops sample weights silently where there is no `y`.

    def fit(self, x=None, y=None, *args, sample_weight=None, validation_data=None, **kwargs):
        y = self._pick(x) if y is None and sample_weight is not None else y
        if isinstance(validation_data, (tuple, list)) and len(validation_data) == 3 and validation_data[1] is None:
            validation_data = (validation_data[0], self._pick(validation_data[0]), validation_data[2])
        return super().fit(x, y, *args, sample_weight=sample_weight, validation_data=validation_data, **kwargs)

    def evaluate(self, x=None, y=None, *args, sample_weight=None, **kwargs):
        y = self._pick(x) if y is None and sample_weight is not None else y
        return super().evaluate(x, y, *args, sample_weight=sample_weight, **kwargs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        reconstruction, penalty = y_pred
        target = self.target(x, y, reconstruction)
        if sample_weight is not None:
            sample_weight = ops.reshape(sample_weight, (-1,))
        loss = super().compute_loss(x, target, reconstruction, sample_weight, training)
        weighted_penalty = self.penalty_weight * ops.cast(penalty, "float32")
        loss = loss + self._mean_of_examples(penalty, weighted_penalty, sample_weight)

        # Metrics see each replica's own values; the loss above is scaled for the sum over replicas.
        weight = 1.0 if sample_weight is None else ops.cast(sample_weight, "float32")
        self.reconstruction_tracker.update_state(self._loss_of_examples(target, reconstruction) * weight)
        self.penalty_tracker.update_state(ops.cast(penalty, "float32") * weight)
        return loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        reconstruction, _ = y_pred
        return super().compute_metrics(x, self.target(x, y, reconstruction), reconstruction, sample_weight)

    def target(self, x, y, reconstruction):
        """What the reconstruction is compared with: `y` where there is one, else the data themselves."""
        target = self._pick(x if y is None else y)
        shapes = tuple(target.shape), tuple(reconstruction.shape)
        if not fits(*shapes):
            raise ValueError(
                "The target must have the shape of the reconstruction: an auto-encoder needs no labels, "
                f"`fit(x)` is enough. Received: a target of shape {shapes[0]}, a reconstruction of shape {shapes[1]}"
            )
        return self._data(target)

    # === Latent statistics ===

    def adapt(self, data, *, batch_size=256):
        """Measure the mean and variance of the latents exactly, over a whole data set.

        Training keeps moving averages of them; call this for exact ones, for instance before a diffusion model is
        trained on the latents.

        Args:
            data: array `(N, …)`, a dict of such, or an iterable of batches (arrays, dicts, or tuples headed by one), such as a
                `tf.data.Dataset`.
            batch_size: batch size for arrays. Defaults to 256.

        Raises:
            ValueError: if there are no data.
        """
        batch_size = positive_integer("batch_size", batch_size)
        count, total, squares = 0, 0.0, 0.0
        for batch in _batches(data, self._pick, batch_size):
            z = ops.convert_to_numpy(ops.cast(self.posterior_mean(self._data(batch)), "float32")).astype("float64")
            z = z.reshape(-1, z.shape[-1])
            count, total, squares = count + len(z), total + z.sum(axis=0), squares + (z * z).sum(axis=0)
        if not count:
            raise ValueError("`data` must have at least one example. Received none")
        if not np.all(np.isfinite(squares)):
            raise ValueError(
                "The latents of `data` must be finite. Received: NaN or infinite values in data or weights"
            )
        mean = total / count
        self.statistics.set(mean.astype("float32"), (squares / count - mean**2).astype("float32"))

    def posterior_mean(self, x):
        """The latents of data, as the encoder gives them: before quantisation, noise or normalisation."""
        raise NotImplementedError

    def encode_latents(self, x):
        """Encode into the continuous space of diffusion models: each channel of zero mean and unit variance.

        Args:
            x: data `(B, *spatial, C)`, or a dict with the modality.

        Returns:
            Latents `(B, *grid, latent_channels)`, float32.
        """
        return self.statistics(self.posterior_mean(self._data(x)))

    # === Saving ===

    # What `encode` gives: its name, and its dtype.
    code_name, code_dtype = "latents", "float32"

    def endpoints(self):
        """What `saving.export` writes: `encode`, `decode` and `reconstruct`."""
        kind, code = self.modality, self.code_name
        data = {kind: ((None, *self.example_shape), "float32")}
        shape = self.latent_shape if self.code_dtype == "float32" else self.code_shape
        return {
            "encode": Endpoint(lambda **given: {code: self.encode(given[kind])}, data, f"{kind} in [-1, 1] to {code}"),
            "decode": Endpoint(
                lambda **given: {kind: self.decode(given[code])},
                {code: ((None, *shape), self.code_dtype)},
                f"{code} to {kind} in [-1, 1]",
            ),
            "reconstruct": Endpoint(
                lambda **given: {kind: self.decode(self.encode(given[kind]))},
                data,
                f"{kind} in [-1, 1] to {code} and back",
            ),
        }

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "encoder": serialize(self.encoder),
            "decoder": serialize(self.decoder),
            "modality": self.modality,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for key in cls.parts:
            if config.get(key) is not None:
                config[key] = keras.saving.deserialize_keras_object(config[key], custom_objects=custom_objects)
        return cls(**config)


def check_float(x):
    """Data as float32.

    Raises:
        ValueError: if they are not floats, as pixels of 0 to 255.
    """
    dtype = keras.backend.standardize_dtype(x.dtype) if hasattr(x, "dtype") else "float32"
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            "The data must be floats in the range of what shall be restored, [-1, 1] in this package: scale integers first, "
            f"such as `images / 127.5 - 1`. Received: dtype={dtype}"
        )
    return ops.convert_to_tensor(x, dtype="float32")


def _second(_, values):
    return values


def _batches(data, pick, batch_size):
    """Batches out of an array, a dict of arrays, or an iterable of batches."""
    data = pick(data) if isinstance(data, dict) else data
    if hasattr(data, "shape"):
        for begin in range(0, data.shape[0], batch_size):
            yield data[begin : begin + batch_size]
        return
    for batch in data:
        yield np.asarray(pick(batch[0] if isinstance(batch, (tuple, list)) else batch))
