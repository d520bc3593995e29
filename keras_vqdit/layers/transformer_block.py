"""The transformer block: plain, or modulated by a condition (adaLN-zero); with or without a context to attend to."""

import keras
from keras import layers, ops

from keras_vqdit.checks import fits, number, one_of, positive_integer
from keras_vqdit.layers.attention import MultiHeadAttention


@keras.saving.register_keras_serializable("keras_vqdit")
class TransformerBlock(layers.Layer):
    """Pre-norm transformer block: attention and a feed-forward network, each with a residual connection around it.

    With `conditioning="adaln_zero"` the norms have no weights of their own: a condition shifts and scales what goes
    into each branch and gates what comes out, by way of a zero-initialised layer. The block starts as the identity.

    Args:
        d_model: width of the sequence.
        num_heads: number of attention heads; must divide `d_model`.
        dff: width of the feed-forward network.
        rate: dropout rate: of the attention weights, and of what attention and the feed-forward network put out.
            Defaults to 0, which costs nothing.
        conditioning: `None` (plain, default) or `"adaln_zero"`.
        cross_attention: also attend to a context sequence, between the two branches. Defaults to `False`.
        query_key_norm: as in `MultiHeadAttention`. Defaults to `False`.
        rotary_grids: of the self-attention, as in `MultiHeadAttention`. Defaults to `None`.
        activation: of the feed-forward network, a name or a function. Defaults to `"gelu_tanh"`, the GELU in its tanh
            approximation.

    Call arguments:
        x: `(B, T, d_model)`.
        condition: `(B, Dc)`, with `conditioning` only.
        context: `(B, S, Dx)`, with `cross_attention` only.
        context_mask: bool `(B, S)`, `True` where the context may be seen. Where none of it may, the block does
            without.
        mask: bool mask of the self-attention, as in `MultiHeadAttention`. One of padding, `(B, T)`, goes on to the next layer.
        return_attention_scores: also return the weights of the self-attention. Defaults to `False`.
        training: whether to drop.

    Returns:
        `(B, T, d_model)`. With `return_attention_scores` a tuple of it and the weights `(B, num_heads, T, T)`, float32.

    Raises:
        ValueError: if an argument has an impossible value, or a condition or context is missing or of no use.

    Example:
    >>> import numpy as np
    >>> x, condition = np.ones((2, 49, 64), "float32"), np.ones((2, 64), "float32")
    >>> tuple(TransformerBlock(64, 4, 256, conditioning="adaln_zero")(x, condition).shape)
    (2, 49, 64)

    References:
        - [Attention Is All You Need](https://arxiv.org/abs/1706.03762)
        - [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748), figure 3
    """

    def __init__(
        self,
        d_model,
        num_heads,
        dff,
        rate=0.0,
        *,
        conditioning=None,
        cross_attention=False,
        query_key_norm=False,
        rotary_grids=None,
        activation="gelu_tanh",
        **kwargs,
    ):
        super().__init__(**kwargs)
        dff = positive_integer("dff", dff)
        number("rate", rate, 0, below=1)
        one_of("conditioning", conditioning, (None, "adaln_zero"))
        self.d_model, self.num_heads, self.dff, self.rate = d_model, num_heads, dff, rate
        self.conditioning, self.cross_attention, self.query_key_norm = (
            conditioning,
            cross_attention,
            query_key_norm,
        )
        self.activation = gelu_tanh if activation == "gelu_tanh" else keras.activations.get(activation)

        # === Layers ===
        policy, modulated = self.dtype_policy, conditioning is not None
        attention = {"query_key_norm": query_key_norm, "dropout": rate, "dtype": policy}
        norm = {"center": not modulated, "scale": not modulated, "epsilon": 1e-6, "dtype": policy}
        self.norm1 = layers.LayerNormalization(**norm, name="norm1")
        self.mha = MultiHeadAttention(num_heads, d_model, rotary_grids=rotary_grids, **attention, name="mha")
        if cross_attention:
            # The condition does not gate this branch, so its own zeros let the block start as the identity.
            output_initializer = "zeros" if modulated else "glorot_uniform"
            self.norm_cross = layers.LayerNormalization(epsilon=1e-6, dtype=policy, name="norm_cross")
            self.mha_cross = MultiHeadAttention(
                num_heads, d_model, output_initializer=output_initializer, **attention, name="mha_cross"
            )
        self.norm2 = layers.LayerNormalization(**norm, name="norm2")
        self.ffn1 = layers.Dense(dff, dtype=policy, name="ffn1")
        self.ffn2 = layers.Dense(d_model, dtype=policy, name="ffn2")
        if modulated:
            self.modulation = layers.Dense(6 * d_model, kernel_initializer="zeros", dtype=policy, name="modulation")
        self.dropout1 = layers.Dropout(rate, dtype=policy, name="dropout1")
        self.dropout2 = layers.Dropout(rate, dtype=policy, name="dropout2")
        self.supports_masking = True

    # === State ===

    def build(self, x_shape, condition_shape=None, context_shape=None):
        if len(x_shape) != 3 or x_shape[-1] != self.d_model:
            raise ValueError(f"`x` must be of shape (B, T, d_model={self.d_model}). Received: shape={tuple(x_shape)}")
        self._check_given(condition_shape, context_shape)
        self.norm1.build(x_shape)
        self.mha.build(x_shape)
        if self.cross_attention:
            self.norm_cross.build(x_shape)
            self.mha_cross.build(x_shape, context_shape)
        self.norm2.build(x_shape)
        self.ffn1.build(x_shape)
        self.ffn2.build((*x_shape[:-1], self.dff))
        if self.conditioning:
            self.modulation.build(condition_shape)
        self.built = True

    def _check_given(self, condition, context):
        for name, value, option, setting in (
            ("condition", condition, "conditioning", self.conditioning),
            ("context", context, "cross_attention", self.cross_attention),
        ):
            if (value is not None) != bool(setting):
                raise ValueError(
                    f"`{name}` must {'be given' if setting else 'be None'} with {option}={setting!r}. "
                    f"Received: {name}={'None' if value is None else 'a tensor'}"
                )

    # === Computation ===

    def call(
        self,
        x,
        condition=None,
        context=None,
        context_mask=None,
        mask=None,
        x_mask=None,
        return_attention_scores=False,
        training=None,
    ):
        mask = x_mask if mask is None else mask  # Keras hands the mask of one of several inputs over by this name
        self._check_given(condition, context)
        if condition is not None and not fits(condition.shape, (x.shape[0], None)):
            raise ValueError(
                f"`condition` must be of shape (B, channels), for x of shape {tuple(x.shape)}. "
                f"Received: shape={tuple(condition.shape)}"
            )
        if self.conditioning:
            # (B, 6 D) -> six of (B, 1, D)
            parts = ops.split(self.modulation(ops.silu(condition))[:, None], 6, axis=-1)
            shift1, scale1, gate1, shift2, scale2, gate2 = parts
        else:
            shift1 = scale1 = gate1 = shift2 = scale2 = gate2 = None

        hidden = self.mha(
            modulate(self.norm1(x), shift1, scale1),
            mask=mask,
            return_attention_scores=return_attention_scores,
            training=training,
        )
        if return_attention_scores:
            hidden, scores = hidden
        hidden = self.dropout1(hidden, training=training)
        x = x + (hidden if gate1 is None else gate1 * hidden)

        if self.cross_attention:
            x = x + self.mha_cross(self.norm_cross(x), context, mask=context_mask, training=training)

        hidden = self.ffn2(self.activation(self.ffn1(modulate(self.norm2(x), shift2, scale2))))
        hidden = self.dropout2(hidden, training=training)
        x = x + (hidden if gate2 is None else gate2 * hidden)
        return (x, scores) if return_attention_scores else x

    def compute_output_shape(self, x_shape, condition_shape=None, context_shape=None):
        return x_shape

    def compute_output_spec(
        self,
        x,
        condition=None,
        context=None,
        context_mask=None,
        mask=None,
        x_mask=None,
        return_attention_scores=False,
        training=None,
    ):
        output = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return output
        scores = (x.shape[0], self.mha.num_heads, x.shape[1], x.shape[1])
        return output, keras.KerasTensor(scores, dtype="float32")

    def compute_mask(self, x, previous_mask=None):
        """The mask of padding `(B, T)` goes on to the next layer; a mask of the attention is no mask of the output."""
        return previous_mask if previous_mask is not None and len(previous_mask.shape) == 2 else None

    # === Config ===

    def get_config(self):
        activation = self.activation
        return {
            **super().get_config(),
            "d_model": self.d_model,
            "num_heads": self.num_heads,
            "dff": self.dff,
            "rate": self.rate,
            "conditioning": self.conditioning,
            "cross_attention": self.cross_attention,
            "query_key_norm": self.query_key_norm,
            "rotary_grids": self.mha.rotary_grids,
            "activation": "gelu_tanh" if activation is gelu_tanh else keras.activations.serialize(activation),
        }


def modulate(x, shift, scale):
    """Shift and scale a normalised sequence by its condition; `None` leaves it as it is. DiT (2212.09748), section 3.2."""
    return x if shift is None else x * (1 + scale) + shift


def gelu_tanh(x):
    """The GELU in its tanh approximation (1606.08415)."""
    return ops.gelu(x, approximate=True)
