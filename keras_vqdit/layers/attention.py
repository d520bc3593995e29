"""Multi-head attention: of a sequence to itself, or to another one."""

import math

import keras
from keras import layers, ops

from keras_vqdit.checks import fits, number, positive_integer
from keras_vqdit.layers.embeddings import check_rotary, rotary_angles, rotate


@keras.saving.register_keras_serializable("keras_vqdit")
class MultiHeadAttention(layers.Layer):
    """Scaled dot-product attention in several heads: softmax(Q Kᵀ / √d_head) V.

    A query alone is self-attention: one matrix product makes queries, keys and values. With a key, and perhaps a
    value, there is a projection each. The first call, or `build`, settles which of the two the layer is.

    Args:
        num_heads: number of heads; must divide `d_model`.
        d_model: width of the output, and of all heads together.
        query_key_norm: divide each head's queries and keys by their root mean square, times a learned scale. It keeps
            the logits of large models bounded. Defaults to `False`.
        dropout: rate at which attention weights are dropped in training. Defaults to 0, which costs nothing.
        use_bias: whether the projections have biases. Defaults to `True`.
        output_initializer: initializer of the output projection's kernel. Defaults to `"glorot_uniform"`, as of all
            the others.
        rotary_grids: list of the grids whose positions follow one another in the sequence, such as `[(7, 7), (48,)]`. Queries
            and keys of self-attention are turned by angles that grow with their position (rotary embedding), so that what
            attends depends on how far apart positions of a grid are. Defaults to `None`, no positions.

    Call arguments:
        query: `(B, T, Dq)`, or a list `[query, key, value]`.
        key: `(B, S, Dk)`. Defaults to the query.
        value: `(B, S, Dv)`. Defaults to the key.
        mask: bool, `True` where a key may be seen: `(B, S)`, `(B, T, S)`, `(B, 1, T, S)` or `(B, num_heads, T, S)`.
            Where a query may see no key at all, the output is the output projection of zeros. Defaults to the mask that
            comes with the keys.
        return_attention_scores: also return the weights. Defaults to `False`.
        training: whether to drop weights.

    Returns:
        `(B, T, d_model)`. With `return_attention_scores` a tuple of it and the weights `(B, num_heads, T, S)`, which
        are float32 under every dtype policy.

    Raises:
        ValueError: if an argument has an impossible value, or the shapes do not fit together.

    Example:
    >>> import numpy as np
    >>> x, context = np.ones((2, 10, 32), "float32"), np.ones((2, 7, 20), "float32")
    >>> tuple(MultiHeadAttention(4, 32)(x).shape)
    (2, 10, 32)
    >>> output, weights = MultiHeadAttention(4, 32)(x, context, return_attention_scores=True)
    >>> tuple(weights.shape)
    (2, 4, 10, 7)

    References:
        - [Attention Is All You Need](https://arxiv.org/abs/1706.03762)
        - [Scaling Rectified Flow Transformers](https://arxiv.org/abs/2403.03206), section 5.3.2 (query-key norm)
        - [RoFormer](https://arxiv.org/abs/2104.09864), section 3.2 (rotary position embedding)
    """

    def __init__(
        self,
        num_heads,
        d_model,
        *,
        query_key_norm=False,
        dropout=0.0,
        use_bias=True,
        output_initializer="glorot_uniform",
        rotary_grids=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        num_heads, d_model = positive_integer("num_heads", num_heads), positive_integer("d_model", d_model)
        if d_model % num_heads:
            raise ValueError(f"`num_heads` must divide `d_model`. Received: num_heads={num_heads}, d_model={d_model}")
        number("dropout", dropout, 0, below=1)
        self.num_heads, self.d_model, self.d_head = num_heads, d_model, d_model // num_heads
        self.query_key_norm, self.dropout, self.use_bias = query_key_norm, dropout, use_bias
        self.output_initializer = keras.initializers.get(output_initializer)
        self.rotary_grids = None if rotary_grids is None else tuple(map(tuple, rotary_grids))
        if rotary_grids is not None:
            check_rotary(self.rotary_grids, self.d_head)

        # === Layers ===
        if query_key_norm:
            self.query_norm = layers.RMSNormalization(epsilon=1e-6, dtype=self.dtype_policy, name="query_norm")
            self.key_norm = layers.RMSNormalization(epsilon=1e-6, dtype=self.dtype_policy, name="key_norm")
        self.dropout_layer = layers.Dropout(dropout, dtype=self.dtype_policy)
        self.supports_masking = True

    # === State ===

    def build(self, query_shape, key_shape=None, value_shape=None):
        if len(query_shape) and isinstance(query_shape[0], (list, tuple)):
            query_shape, key_shape, value_shape = query_shape
        _check_shapes(query_shape, key_shape, value_shape)
        self.is_self_attention = key_shape is None
        if self.rotary_grids is not None:
            positions = sum(map(math.prod, self.rotary_grids))
            if not self.is_self_attention or query_shape[1] not in (positions, None):
                raise ValueError(
                    f"`rotary_grids` must be of the positions of self-attention: {self.rotary_grids} are {positions}. "
                    f"Received: {'a key' if key_shape is not None else f'shape={tuple(query_shape)}'}"
                )
        if self.is_self_attention:
            self.query_key_value_dense = self._projection("query_key_value_dense", query_shape, 3 * self.d_model)
        else:
            self.query_dense = self._projection("query_dense", query_shape)
            self.key_dense = self._projection("key_dense", key_shape)
            self.value_dense = self._projection("value_dense", value_shape or key_shape)
        self.output_dense = self._projection(
            "output_dense", (None, None, self.d_model), kernel_initializer=self.output_initializer
        )
        if self.query_key_norm:
            self.query_norm.build((None, None, self.num_heads, self.d_head))
            self.key_norm.build((None, None, self.num_heads, self.d_head))
        self.built = True

    def _projection(self, name, input_shape, units=None, **options):
        dense = layers.Dense(
            units or self.d_model, use_bias=self.use_bias, dtype=self.dtype_policy, name=name, **options
        )
        dense.build(input_shape)
        dense.trainable = self.trainable  # a layer may be frozen before it is built
        return dense

    # === Computation ===

    def call(self, query, key=None, value=None, mask=None, return_attention_scores=False, training=None, key_mask=None):
        query, key, value = _three_inputs(query, key, value)
        _check_shapes(*(None if x is None else x.shape for x in (query, key, value)))
        mask = key_mask if mask is None else mask  # Keras hands the mask of one of several inputs over by this name
        if isinstance(mask, (list, tuple)):  # the masks that Keras found on a list of inputs
            mask = mask[1]
        if self.is_self_attention != (key is None):
            expected = "the query alone" if self.is_self_attention else "a key"
            raise ValueError(
                f"The layer was built for {'self' if self.is_self_attention else 'cross'}-attention, so its call takes "
                f"{expected}. Received: key={'None' if key is None else 'a tensor'}"
            )
        if self.is_self_attention:
            q, k, v = ops.split(self.query_key_value_dense(query), 3, axis=-1)
        else:
            q, k = self.query_dense(query), self.key_dense(key)
            v = self.value_dense(key if value is None else value)
        q, k, v = self._split_heads(q), self._split_heads(k), self._split_heads(v)  # (B, length, h, d_head)
        if self.query_key_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rotary_grids is not None:
            angles = rotary_angles(self.rotary_grids, self.d_head)
            q, k = rotate(q, angles), rotate(k, angles)

        weights = self._weights(q, k, mask)  # (B, h, T, S), float32
        dropped = self.dropout_layer(ops.cast(weights, self.compute_dtype), training=training)
        heads = dropped @ ops.transpose(v, (0, 2, 1, 3))  # (B, h, T, d_head)
        output = self.output_dense(self._merge_heads(heads))  # (B, T, D)
        return (output, weights) if return_attention_scores else output

    def _weights(self, q, k, mask):
        """Softmax over the keys, in float32 under every policy."""
        q = ops.transpose(q * self.d_head**-0.5, (0, 2, 1, 3))  # (B, h, T, d_head)
        k = ops.transpose(k, (0, 2, 3, 1))  # (B, h, d_head, S)
        logits = ops.cast(q @ k, "float32")
        if mask is None:
            return _softmax(logits)
        mask = _with_four_axes(mask, logits)
        # Not minus infinity, of which a row without a key would make NaN; the second `where` clears such rows.
        weights = _softmax(ops.where(mask, logits, -1e30))
        return ops.where(mask, weights, 0.0)

    def _split_heads(self, x):
        return ops.reshape(x, (-1, *_length(x, 1), self.num_heads, self.d_head))

    def _merge_heads(self, x):
        return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, *_length(x, 2), self.d_model))

    def compute_output_spec(
        self, query, key=None, value=None, mask=None, return_attention_scores=False, training=None, key_mask=None
    ):
        query, key, value = _three_inputs(query, key, value)
        output = keras.KerasTensor((*query.shape[:-1], self.d_model), dtype=self.compute_dtype)
        if not return_attention_scores:
            return output
        key_count = (query if key is None else key).shape[1]
        return output, keras.KerasTensor((query.shape[0], self.num_heads, query.shape[1], key_count), dtype="float32")

    def compute_mask(self, query, previous_mask=None):
        return None

    # === Config ===

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "d_model": self.d_model,
            "query_key_norm": self.query_key_norm,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "output_initializer": keras.initializers.serialize(self.output_initializer),
            "rotary_grids": self.rotary_grids,
        }


def _softmax(x):
    # Keras warns of a softmax over a single key, which is no mistake here.
    return ops.softmax(x, axis=-1) if x.shape[-1] != 1 else ops.exp(x - x)


def _check_shapes(query_shape, key_shape, value_shape):
    for name, shape in (("query", query_shape), ("key", key_shape), ("value", value_shape)):
        if shape is not None and len(shape) != 3:
            raise ValueError(f"`{name}` must be of shape (B, length, channels). Received: shape={tuple(shape)}")
    if value_shape is not None and key_shape is None:
        raise ValueError("`value` must come with a `key`. Received: key=None")
    if value_shape is not None and not fits(value_shape[:2], key_shape[:2]):
        raise ValueError(
            "`value` must have as many positions as `key`. "
            f"Received: key.shape={tuple(key_shape)}, value.shape={tuple(value_shape)}"
        )


def _three_inputs(query, key, value):
    """Query, key and value, which may come as one list."""
    if not isinstance(query, (list, tuple)):
        return query, key, value
    if len(query) != 3:
        raise ValueError(f"A list of inputs must be [query, key, value]. Received: {len(query)} inputs")
    return query


def _length(x, axis):
    """The length of an axis for `reshape`, whose batch size is the unknown one."""
    return (x.shape[axis] if x.shape[axis] is not None else ops.shape(x)[axis],)


def _with_four_axes(mask, logits):
    """The mask as bool, broadcastable against the logits `(B, h, T, S)`."""
    mask = ops.convert_to_tensor(mask)
    if "float" in keras.backend.standardize_dtype(mask.dtype):  # 0 and -1e9, to be added, mean the opposite
        raise ValueError(f"`mask` must be bool or integers, true where a key counts. Received: dtype={mask.dtype}")
    mask = ops.cast(mask, "bool")
    rank, given = len(mask.shape), tuple(mask.shape)
    if rank in (2, 3):
        mask = mask[:, None, None, :] if rank == 2 else mask[:, None]
    fits = rank in (2, 3, 4) and all(
        size in (1, None) or expected in (size, None) for size, expected in zip(mask.shape, logits.shape)
    )
    if not fits:
        raise ValueError(
            "`mask` must be of shape (B, S), (B, T, S), (B, 1, T, S) or (B, num_heads, T, S) with "
            f"(B, num_heads, T, S)={tuple(logits.shape)}. Received: mask.shape={given}"
        )
    return mask
