"""The diffusion transformer: predicts, from a noisy input, what a diffusion process asks for."""

import math

import keras
from keras import layers, ops

from keras_vqdit.checks import check_times, one_each, positive_integer
from keras_vqdit.layers.embeddings import LabelEmbedding, TimeEmbedding, sincos_position_embedding
from keras_vqdit.layers.patches import patch_grid, patchify, unpatchify
from keras_vqdit.layers.transformer_block import TransformerBlock, modulate
from keras_vqdit.training import DistributedModel

# name: (d_model, num_heads, num_layers).  DiT (2212.09748), table 1
SIZES = {
    "S": (384, 6, 12),
    "B": (768, 12, 12),
    "L": (1024, 16, 24),
    "XL": (1152, 16, 28),
}
KEYS = ("x", "t", "label", "context", "context_mask")


@keras.saving.register_keras_serializable("keras_vqdit")
class DiffusionTransformer(DistributedModel):
    """Diffusion transformer (DiT) with adaLN-zero blocks, for sequences, images and video.

    A pure function of a noisy input, a time and a condition, whose output has the shape of its input. It knows neither the
    diffusion process nor the sampler: `LatentDiffusion` brings them together. Its last layer starts at zero, so an
    untrained model puts out zeros.

    Args:
        d_model: width of the token sequence.
        num_heads: attention heads; must divide `d_model`.
        dff: width of the feed-forward networks, usually `4 * d_model`.
        num_layers: number of blocks.
        rate: dropout rate. Defaults to 0, which costs nothing.
        patch_size: integer, or one for each spatial dimension. Defaults to 1.
        num_classes: number of class labels; the label `num_classes` is the null label, which stands for none. Defaults
            to `None`, a model without labels.
        context_dim: channels of a context sequence that every block attends to. Defaults to `None`, a model without.
        learn_variance: put out twice the channels, the second half for the variance. Defaults to `False`.
        query_key_norm: as in `MultiHeadAttention`. Defaults to `False`.

    Call arguments:
        inputs: the noisy input, or a dict of which only `"x"` must be there:
            - `"x"`: the noisy input, `(B, T, C)`, `(B, H, W, C)` or `(B, F, H, W, C)`. Its spatial sizes must be known
              multiples of the patch size, and need not be those of the last call.
            - `"t"`: time, a tensor or array `(B,)` or `()`, in [0, 1]; 0 is data, 1 is noise. Defaults to 0.
            - `"label"`: integers `(B,)` from 0 to `num_classes`. Defaults to the null label.
            - `"context"`: `(B, S, context_dim)`. Defaults to none, as if all of it were masked.
            - `"context_mask"`: bool `(B, S)`, `True` where the context may be seen. Defaults to everywhere.
        training: whether to drop.

    Returns:
        `(B, …, C)`, or `(B, …, 2 C)` with `learn_variance`; float32 under every dtype policy but float64.

    Raises:
        ValueError: if an argument has an impossible value, the inputs have unknown keys or shapes that do not fit, or
            labels whose values are known are out of range.

    Example:

    ```python
    import numpy as np
    from keras_vqdit import DiffusionTransformer

    network = DiffusionTransformer(d_model=64, num_heads=4, dff=256, num_layers=2, patch_size=2, num_classes=10)
    noisy = np.random.default_rng(0).normal(size=(8, 28, 20, 3)).astype("float32")
    network({"x": noisy, "t": np.full(8, 0.5), "label": np.arange(8)}).shape  # (8, 28, 20, 3)
    ```

    References:
        - [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748)
    """

    def __init__(
        self,
        d_model,
        num_heads,
        dff,
        num_layers,
        rate=0.0,
        *,
        patch_size=1,
        num_classes=None,
        context_dim=None,
        learn_variance=False,
        query_key_norm=False,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # half precision would round the times
        num_layers = positive_integer("num_layers", num_layers)
        context_dim = None if context_dim is None else positive_integer("context_dim", context_dim)
        self.d_model, self.num_heads, self.dff, self.num_layers, self.rate = (
            d_model,
            num_heads,
            dff,
            num_layers,
            rate,
        )
        if isinstance(patch_size, (list, tuple)):
            self.patch_size = one_each("patch_size", patch_size, len(patch_size))
        else:
            self.patch_size = positive_integer("patch_size", patch_size)
        self.num_classes, self.context_dim = num_classes, context_dim
        self.learn_variance, self.query_key_norm = learn_variance, query_key_norm

        # === Layers ===
        policy = self.dtype_policy
        self.patch_embedding = layers.Dense(d_model, dtype=policy, name="patch_embedding")
        self.time_embedding = TimeEmbedding(d_model, dtype=policy, name="time_embedding")
        self.label_embedding = None
        if num_classes is not None:
            self.label_embedding = LabelEmbedding(num_classes, d_model, dtype=policy, name="label_embedding")
        self.blocks = [
            TransformerBlock(
                d_model,
                num_heads,
                dff,
                rate,
                conditioning="adaln_zero",
                cross_attention=context_dim is not None,
                query_key_norm=query_key_norm,
                dtype=policy,
                name=f"block_{i}",
            )
            for i in range(num_layers)
        ]
        self.final_norm = layers.LayerNormalization(
            center=False, scale=False, epsilon=1e-6, dtype=policy, name="final_norm"
        )
        self.final_modulation = layers.Dense(
            2 * d_model, kernel_initializer="zeros", dtype=policy, name="final_modulation"
        )

    @classmethod
    def from_size(cls, name, **options):
        """A model of one of the sizes of the DiT paper.

        Args:
            name: size and patch size: `"S/2"`, `"B/4"`, `"L/8"`, `"XL/2"` and their like.
            **options: further arguments of the constructor.

        Returns:
            A new `DiffusionTransformer`.

        Raises:
            ValueError: if there is no such size.
        """
        size, _, patch = str(name).partition("/")
        if size not in SIZES or not patch.isdecimal() or int(patch) < 1:
            raise ValueError(
                f"`name` must be one of {', '.join(SIZES)} with a patch size, as 'S/2'. Received: name={name!r}"
            )
        d_model, num_heads, num_layers = SIZES[size]
        return cls(d_model, num_heads, 4 * d_model, num_layers, patch_size=int(patch), **options)

    # === State ===

    def build(self, input_shape):
        if self.built:
            return
        if isinstance(input_shape, dict):
            self._check_keys(input_shape)
            input_shape = input_shape["x"]
        shape = tuple(input_shape)
        grid, patch = patch_grid(shape, self.patch_size)
        if shape[-1] is None:
            raise ValueError(f"The number of channels must be known. Received: input_shape={shape}")
        self.input_rank, self.channels = len(grid), shape[-1]
        self.output_channels = 2 * self.channels if self.learn_variance else self.channels
        tokens = (None, math.prod(grid), self.d_model)
        context = None if self.context_dim is None else (None, None, self.context_dim)

        self.patch_embedding.build((*tokens[:2], math.prod(patch) * self.channels))
        self.time_embedding.build((None,))
        if self.label_embedding is not None:
            self.label_embedding.build((None,))
        for block in self.blocks:
            block.build(tokens, (None, self.d_model), context)
        self.final_norm.build(tokens)
        self.final_modulation.build((None, self.d_model))
        self.final_dense = layers.Dense(
            math.prod(patch) * self.output_channels,
            kernel_initializer="zeros",
            dtype=self.variable_dtype,  # what leaves the model is not rounded to half precision
            name="final_dense",
        )
        self.final_dense.build(tokens)
        self.final_dense.trainable = self.trainable  # a model may be frozen before it is built
        self.built = True

    # === Computation ===

    def call(self, inputs, training=None):
        return self._forward(inputs, training)

    def attention_scores(self, inputs):
        """Where each position of each block's self-attention looks.

        Args:
            inputs: as in the call.

        Returns:
            float32 tensor `(num_layers, B, num_heads, N, N)` of N positions, which sums to 1 over the last axis: what
            `plotting.attention_maps` draws of one example, `scores[:, 0]`.

        Example:
        >>> import numpy as np
        >>> model = DiffusionTransformer(32, 2, 64, num_layers=3)
        >>> tuple(model.attention_scores(np.zeros((1, 7, 7, 4), "float32")).shape)
        (3, 1, 2, 49, 49)
        """
        inputs = inputs if isinstance(inputs, dict) else {"x": inputs}
        inputs = {key: ops.convert_to_tensor(value) for key, value in inputs.items() if value is not None}
        if not self.built:
            self.build({key: value.shape for key, value in inputs.items()})
        scores = []
        self._forward(inputs, False, scores)
        return ops.stack(scores)

    def _forward(self, inputs, training, scores=None):
        """The output; the weights of each block's attention are added to the list `scores`, where there is one."""
        x, t, label, context, context_mask = self._check_inputs(inputs)
        grid, _ = patch_grid(x.shape, self.patch_size)

        x = self.patch_embedding(patchify(ops.cast(x, self.compute_dtype), self.patch_size))  # (B, N, D)
        x = x + ops.cast(sincos_position_embedding(grid, self.d_model), self.compute_dtype)
        condition = self.time_embedding(t)  # (B, D)
        if self.label_embedding is not None:
            condition = condition + self.label_embedding(label)

        options = {"context": context, "context_mask": context_mask, "training": training}
        for block in self.blocks:
            if scores is None:
                x = block(x, condition, **options)
            else:
                x, weights = block(x, condition, return_attention_scores=True, **options)
                scores.append(weights)

        shift, scale = ops.split(self.final_modulation(ops.silu(condition))[:, None], 2, axis=-1)
        x = self.final_dense(modulate(self.final_norm(x), shift, scale))
        return unpatchify(x, grid, self.patch_size, self.output_channels)

    def _check_inputs(self, inputs):
        """Input, time, label, context and its mask; what was not given has its default."""
        inputs = inputs if isinstance(inputs, dict) else {"x": inputs}
        self._check_keys(inputs)
        x, t, label, context, context_mask = (inputs.get(key) for key in KEYS)
        self._check_shape(x.shape)
        for key, value, option, setting in (
            ("label", label, "num_classes", self.num_classes),
            ("context", context, "context_dim", self.context_dim),
        ):
            if value is not None and setting is None:
                raise ValueError(f'A model with {option}=None takes no "{key}". Received: keys {sorted(inputs)}')
        for key, value, ranks in (("t", t, (0, 1)), ("label", label, (1,))):
            if value is not None and len(value.shape) not in ranks:
                raise ValueError(f'"{key}" must be of shape (B,). Received: shape={tuple(value.shape)}')
        if context is None and context_mask is not None:
            raise ValueError(f'"context_mask" must come with a "context". Received: keys {sorted(inputs)}')
        if t is not None:
            check_times(t)
        batch = ops.shape(x)[0]

        t = ops.broadcast_to(ops.cast(t if t is not None else 0.0, "float32"), (batch,))
        if self.num_classes is not None and label is None:
            label = ops.full((batch,), self.num_classes, dtype="int32")
        if self.context_dim is not None and context is None:
            context = ops.zeros((batch, 1, self.context_dim), self.compute_dtype)
            context_mask = ops.zeros((batch, 1), "bool")
        if context is not None and (len(context.shape) != 3 or context.shape[-1] not in (None, self.context_dim)):
            raise ValueError(
                f'"context" must be of shape (B, S, context_dim={self.context_dim}). Received: shape={tuple(context.shape)}'
            )
        if context is not None:
            context = ops.cast(context, self.compute_dtype)
        return x, t, label, context, context_mask

    def _check_keys(self, inputs):
        if "x" not in inputs or not set(inputs) <= set(KEYS):
            raise ValueError(
                f'Inputs must be `x`, or a dict with "x" and keys among {KEYS}. Received: keys {sorted(inputs)}'
            )

    def _check_shape(self, shape):
        if len(shape) != self.input_rank + 2 or shape[-1] != self.channels:
            raise ValueError(
                f"The model was built for inputs of {self.input_rank} spatial dimensions and {self.channels} channels. "
                f"Received: x.shape={tuple(shape)}"
            )

    def compute_output_spec(self, inputs, training=None):
        x = inputs["x"] if isinstance(inputs, dict) else inputs
        self._check_shape(x.shape)
        patch_grid(x.shape, self.patch_size)
        return keras.KerasTensor((*x.shape[:-1], self.output_channels), dtype=self.variable_dtype)

    def count_macs(self, input_shape, context_length=0):
        """Multiply-accumulates of one example's forward pass, the matrix products alone.

        The blocks' share is `L (12 d² N + 2 N² d + 6 d²)` for N tokens and dff = 4 d.

        Args:
            input_shape: `(B, *spatial, C)`; the batch size does not matter.
            context_length: length of the context sequence, if there is one. Defaults to 0.

        Returns:
            int.

        Example:
        >>> DiffusionTransformer.from_size("S/2", num_classes=1000, learn_variance=True).count_macs((None, 32, 32, 4))
        6055673856
        """
        grid, patch = patch_grid(tuple(input_shape), self.patch_size)
        n, d, pixels = math.prod(grid), self.d_model, math.prod(patch) * input_shape[-1]
        attention = 4 * d * d * n + 2 * n * n * d
        feed_forward = 2 * d * self.dff * n
        modulation = 6 * d * d
        block = attention + feed_forward + modulation
        if self.context_dim is not None:
            s = context_length
            block += 2 * d * d * n + 2 * self.context_dim * d * s + 2 * n * s * d
        time = (self.time_embedding.frequency_dim + d) * d
        final = 2 * d * d + n * d * pixels * (2 if self.learn_variance else 1)
        return n * pixels * d + time + self.num_layers * block + final

    # === Config ===

    def get_config(self):
        return {
            **super().get_config(),
            "d_model": self.d_model,
            "num_heads": self.num_heads,
            "dff": self.dff,
            "num_layers": self.num_layers,
            "rate": self.rate,
            "patch_size": self.patch_size,
            "num_classes": self.num_classes,
            "context_dim": self.context_dim,
            "learn_variance": self.learn_variance,
            "query_key_norm": self.query_key_norm,
        }
