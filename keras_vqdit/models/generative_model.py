"""What the diffusion models share: `fit` without targets, a moving average of the network's weights, frozen tokenizers."""

import keras
import numpy as np
from keras import ops
from keras.src.backend import AutocastScope

from keras_vqdit.checks import number
from keras_vqdit.saving import FromPreset
from keras_vqdit.saving.strict import without_values
from keras_vqdit.training import DistributedModel
from keras_vqdit.training.replica_steps import is_seed

TARGETS = (
    "A diffusion model has no targets `y`: labels belong to the inputs, as "
    '`fit({{"image": images, "label": labels}})`. Received: y of type {}'
)


class GenerativeModel(FromPreset, DistributedModel):
    """Base class of the diffusion models: `call` returns a dict with the `"loss"` of each example, and `fit` minimises its mean.

    A subclass makes its network in the constructor, hands it to `keep_average`, and calls `build_average` when it is built.
    Its attribute `tokenizers_in_use` lists the layers that give data their codes or latents; they are frozen.
    """

    def keep_average(self, transformer, ema_decay):
        """Take the network, and make one like it for the moving average of its weights, unless `ema_decay` is `None`."""
        if ema_decay is not None:
            number("ema_decay", ema_decay, 0, below=1)
        self.transformer, self.ema_decay, self.ema_transformer = transformer, ema_decay, None
        if ema_decay is not None:
            config = {**transformer.get_config(), "name": f"{transformer.name}_average"}
            self.ema_transformer = transformer.__class__.from_config(config)

    def build_average(self):
        """Make the average's own weight; both networks are built."""
        if self.ema_transformer is not None:
            self.ema_steps = self.add_weight(
                shape=(),
                initializer="zeros",
                dtype="float32",
                trainable=False,
                aggregation="mean",
                name="ema_steps",
            )
            if not without_values.active:
                self.reset_average()

    @property
    def tokenizers_in_use(self):
        """The layers that turn data into what is diffused."""
        return []

    @property
    def network(self):
        """The network that evaluates and draws: the average, where there is one."""
        return self.transformer if self.ema_transformer is None else self.ema_transformer

    # === Freezing ===

    @property
    def trainable(self):
        """Whether the transformer trains; the tokenizers and the average stay frozen all the same."""
        return super().trainable

    @trainable.setter
    def trainable(self, value):
        keras.Model.trainable.fset(self, value)
        if self.built:
            self.freeze_parts()

    def freeze_parts(self):
        for part in (*self.tokenizers_in_use, self.ema_transformer):
            if part is not None:
                _freeze(part)

    @property
    def fixed_variables(self):
        return [v for part in self.tokenizers_in_use for v in part.weights if not is_seed(v)]

    # === The moving average ===

    def reset_average(self):
        """Start the moving average anew from the transformer's present weights: after they were set by hand.

        Raises:
            ValueError: if the model is not built, or the average has other weights than the transformer.
        """
        if not self.transformer.built:
            raise ValueError("The model must be built before its average can be reset: call it on a batch")
        if self.ema_transformer is None:
            return
        shapes = [[tuple(w.shape) for w in net.weights] for net in (self.ema_transformer, self.transformer)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "`transformer` must be rebuilt by its `get_config` with the same weights, for its moving average; or set "
                f"`ema_decay=None`. Received: {len(shapes[1])} weights, rebuilt with {len(shapes[0])}"
            )
        for average, weight in zip(self.ema_transformer.weights, self.transformer.weights, strict=True):
            average.assign(ops.copy(weight))  # JAX would share the buffer, and can not give it away twice
        self.ema_steps.assign(0.0)

    def check_average(self):
        """An average that has not learned yet is whatever the transformer is now."""
        if self.built and self.ema_transformer is not None and float(self.ema_steps.value + 0.0) == 0:
            self.reset_average()

    def update_average(self):
        """One step of the moving average, over the weights that this step starts from."""
        if self.ema_transformer is None:
            return
        with AutocastScope(None):  # Keras opens one around the outermost model, whatever its `autocast`
            n = self.ema_steps.value
            decay = ops.minimum(self.ema_decay, n / (n + 9.0))
            for average, weight in zip(self.ema_transformer.weights, self.transformer.weights, strict=True):
                average.assign(average + (1 - decay) * (weight - average))
            self.ema_steps.assign(n + 1.0)

    # === Training ===

    def compile(self, optimizer="adamw", **kwargs):
        """Configure training; the arguments are those of `keras.Model.compile`.

        Args:
            optimizer: name or `keras.optimizers.Optimizer`. Defaults to `"adamw"`.
            **kwargs: further arguments, but for a loss and metrics: the process gives the loss, and there are no targets.

        Raises:
            ValueError: for a loss or metrics.
        """
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"`{name}` must be None: the diffusion process gives the loss. Received: {kwargs[name]!r}"
                )
        super().compile(optimizer=optimizer, **kwargs)

    def compiles(self, jit_compile):
        """Whether to compile by XLA what draws: `"auto"` does so where the model was compiled with `jit_compile=True`."""
        return (self.compiled and self.jit_compile is True) if jit_compile == "auto" else jit_compile

    # Keras drops sample weights silently where there is no `y`.

    def fit(self, x=None, y=None, *args, sample_weight=None, validation_data=None, **kwargs):
        if isinstance(validation_data, (tuple, list)):
            validation_data = self._with_weights(*validation_data)
        elif isinstance(validation_data, dict):
            validation_data = self._with_weights(validation_data)
        x = self._with_weights(x, None, sample_weight)
        self.check_arrays(x)
        return super().fit(x, y, *args, validation_data=validation_data, **kwargs)

    def evaluate(self, x=None, y=None, *args, sample_weight=None, **kwargs):
        self.check_average()
        x = self._with_weights(x, None, sample_weight)
        self.check_arrays(x)
        return super().evaluate(x, y, *args, **kwargs)

    def _with_weights(self, x, y=None, sample_weight=None):
        if y is not None:
            raise ValueError(TARGETS.format(type(y).__name__))
        x = self.prepare_arrays(x)
        if sample_weight is None:
            return x
        if not isinstance(x, dict) and not hasattr(x, "shape"):
            raise ValueError(
                'Sample weights of a data set must come with its batches, as `{"sample_weight": …}`. '
                f"Received: x of type {type(x).__name__}"
            )
        return {**(x if isinstance(x, dict) else {self.modality: x}), "sample_weight": np.asarray(sample_weight)}

    def prepare_arrays(self, x):
        """What `fit` and `evaluate` take for their data."""
        return x

    def check_arrays(self, x):
        """Check arrays as a whole before the first step: once compiled, values are not known.

        Raises:
            ValueError: if there are none, they differ in their number of examples, or sample weights have a wrong shape.
        """
        if not isinstance(x, dict):
            return
        if not x:
            raise ValueError("The data must hold at least one key. Received: an empty dict")
        sizes = {key: len(value) for key, value in x.items() if hasattr(value, "shape") and value.shape}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"The data must have equally many examples under every key. Received: {sizes}")
        weights = x.get("sample_weight")
        if weights is not None and len(weights.shape) != 1:
            raise ValueError(f"`sample_weight` must be of shape (N,). Received: shape={tuple(weights.shape)}")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if y is not None:
            raise ValueError(TARGETS.format(type(y).__name__))
        loss = y_pred["loss"]
        if sample_weight is None and isinstance(x, dict):
            sample_weight = x.get("sample_weight")
        if sample_weight is not None:
            loss = loss * ops.cast(sample_weight, loss.dtype)
        loss = ops.mean(loss)
        for extra in self.losses:
            loss = loss + ops.cast(extra, loss.dtype)
        return self.scale_for_replicas(loss)

    # === Presets ===

    def preset_variables(self):
        return self._variables_with(self.transformer)

    def values_for_preset(self):
        self.check_average()
        return self._variables_with(self.network)

    def after_preset(self):
        self.reset_average()

    def _variables_with(self, network):
        return [v for part in (*self.tokenizers_in_use, network) for v in part.weights if not is_seed(v)]


def _freeze(layer):
    """Make a built layer untrainable, with all layers in it.

    TensorFlow ignores an assignment of the value that is there already, so layers that were made since would be missed.
    """
    layer.trainable = True
    layer.trainable = False
