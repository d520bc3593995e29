"""Attention and the transformer block in float64 NumPy, written from the formulas, for the tests of both."""

import numpy as np
from keras import ops


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomize(layer, scale=0.3, seed=0):
    """Give a built layer random weights, for zero-initialised ones hide what lies behind them."""
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(size=w.shape).astype("float32") * scale for w in layer.get_weights()])
    return layer


def weights_of(layer):
    """The weights of a layer as float64, by their path within it: `"mha/output_dense/kernel"`."""
    prefix = len(layer.weights[0].path.split("/")) if not hasattr(layer, "path") else len(layer.path.split("/"))
    return {"/".join(w.path.split("/")[prefix:]): ops.convert_to_numpy(w).astype("float64") for w in layer.weights}


def dense(x, weights, name):
    return x @ weights[f"{name}/kernel"] + weights.get(f"{name}/bias", 0.0)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def heads_of(x, num_heads):
    """(B, T, D) -> (B, h, T, D / h)"""
    return x.reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)


def turned(x, positions):
    """Rotary embedding by complex numbers: x (B, h, T, D), positions (axes, T), channels i and i + D / 2 a number."""
    x = x[..., : x.shape[-1] // 2] + 1j * x[..., x.shape[-1] // 2 :]
    each = x.shape[-1] // len(positions)
    turns = np.ones((x.shape[-2], x.shape[-1]), complex)
    for axis, position in enumerate(positions):
        for i in range(each):
            turns[:, axis * each + i] = np.exp(1j * np.array(position) * 10000.0 ** (-i / each))
    x = x * turns
    return np.concatenate([x.real, x.imag], axis=-1)


def attention(weights, num_heads, query, key=None, value=None, mask=None, prefix="", positions=None):
    """Output and attention weights; `mask` as (B or 1, h or 1, T or 1, S)."""
    weights = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    if key is None:
        q, k, v = np.split(dense(query, weights, "query_key_value_dense"), 3, axis=-1)
    else:
        q, k = dense(query, weights, "query_dense"), dense(key, weights, "key_dense")
        v = dense(key if value is None else value, weights, "value_dense")
    q, k, v = (heads_of(x, num_heads) for x in (q, k, v))
    if "query_norm/scale" in weights:
        q = q / np.sqrt((q**2).mean(axis=-1, keepdims=True) + 1e-6) * weights["query_norm/scale"]
        k = k / np.sqrt((k**2).mean(axis=-1, keepdims=True) + 1e-6) * weights["key_norm/scale"]
    if positions is not None:
        q, k = turned(q, positions), turned(k, positions)
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if mask is None:
        scores = softmax(logits)
    else:
        exp = np.exp(logits - logits.max(axis=-1, keepdims=True)) * mask
        total = exp.sum(axis=-1, keepdims=True)
        scores = exp / np.where(total == 0, 1, total)
    output = (scores @ v).transpose(0, 2, 1, 3).reshape(*query.shape[:2], -1)
    return dense(output, weights, "output_dense"), scores


def layer_norm(x, weights=None, name=None):
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    return (
        x if name is None or f"{name}/gamma" not in weights else x * weights[f"{name}/gamma"] + weights[f"{name}/beta"]
    )


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def block(weights, num_heads, x, condition=None, context=None, context_mask=None, mask=None):
    """The transformer block: adaLN-zero with a condition, plain without."""
    if condition is None:
        shift1 = scale1 = shift2 = scale2 = 0.0
        gate1 = gate2 = 1.0
    else:
        silu = condition / (1 + np.exp(-condition))
        six = np.split(dense(silu, weights, "modulation")[:, None], 6, axis=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = six
    hidden = layer_norm(x, weights, "norm1") * (1 + scale1) + shift1
    x = x + gate1 * attention(weights, num_heads, hidden, mask=mask, prefix="mha/")[0]
    if context is not None:
        mask = None if context_mask is None else context_mask[:, None, None]
        hidden = layer_norm(x, weights, "norm_cross")
        x = x + attention(weights, num_heads, hidden, context, mask=mask, prefix="mha_cross/")[0]
    hidden = layer_norm(x, weights, "norm2") * (1 + scale2) + shift2
    return x + gate2 * dense(gelu_tanh(dense(hidden, weights, "ffn1")), weights, "ffn2")
