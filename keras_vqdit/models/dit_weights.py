"""The weights of a `DiffusionTransformer` in the layout of the official facebookresearch/DiT, both ways."""

import math
from collections.abc import Mapping

import numpy as np
from keras import ops

from keras_vqdit.layers.embeddings import sincos_position_embedding
from keras_vqdit.layers.patches import patch_grid

POSITIONS = "pos_embed"
PATCHES = "x_embedder.proj.weight"


def load_dit_weights(model, state):
    """Give a model the weights of an official DiT.

    Args:
        model: a `DiffusionTransformer` with class labels, without context and query-key norm. It is built if need be.
        state: dict of NumPy arrays, the state dict of the official network for square images. Its positions must be
            the fixed sine-cosine ones, which the model computes for itself.

    Returns:
        The model.

    Raises:
        ValueError: if the model has no official counterpart; if a weight is missing, unknown or of another shape; or if
            the positions differ. No weight is changed then.

    Example:

    ```python
    import torch
    from keras_vqdit import DiffusionTransformer
    from keras_vqdit.models.dit_weights import load_dit_weights

    state = torch.load("DiT-XL-2-256x256.pt", map_location="cpu")
    state = {name: weight.numpy() for name, weight in state.items()}
    model = DiffusionTransformer.from_size("XL/2", num_classes=1000, learn_variance=True)
    load_dit_weights(model, state)
    ```

    References:
        - [The official network](https://github.com/facebookresearch/DiT/blob/main/models.py)
    """
    _check_counterpart(model)
    if not isinstance(state, Mapping):
        raise TypeError(f"`state` must be a dict of arrays. Received: {type(state).__name__}")
    state = {name: np.asarray(weight) for name, weight in state.items()}
    for name, rank in ((PATCHES, 4), (POSITIONS, 3)):
        if name not in state or state[name].ndim != rank:
            raise ValueError(
                f'`state` must have a weight "{name}" with {rank} axes. Received: '
                + (f"shape={state[name].shape}" if name in state else f"{len(state)} weights without it")
            )
    side = math.isqrt(state[POSITIONS].shape[1])
    size = tuple(side * p for p in state[PATCHES].shape[2:])
    if not model.built:
        model.build((None, *size, state[PATCHES].shape[1]))

    expected = dit_weights(model, size)
    missing, unknown = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or unknown:
        raise ValueError(
            f"`state` must have the weights of an official DiT with {model.num_layers} blocks. "
            f"Received: missing {_some(missing)}; unknown {_some(unknown)}"
        )
    for name, weight in expected.items():
        if state[name].shape != weight.shape:
            raise ValueError(f'"{name}" must be of shape {weight.shape}. Received: shape={state[name].shape}')
        if not np.all(np.isfinite(state[name])):
            raise ValueError(f'"{name}" must be finite. Received: NaN or infinite values')
    if not np.allclose(state[POSITIONS], expected[POSITIONS], atol=1e-5):
        difference = np.abs(state[POSITIONS] - expected[POSITIONS]).max()
        raise ValueError(
            f'"{POSITIONS}" must be the sine-cosine positions of {side} by {side} patches. '
            f"Received: positions that differ from them by up to {difference:.2g}"
        )
    for name, (variable, inward, _) in _table(model).items():
        variable.assign(inward(state[name]))
    return model


def dit_weights(model, size):
    """The weights of a model in the official layout.

    Args:
        model: a built `DiffusionTransformer` with class labels, without context and query-key norm.
        size: `(H, W)` of the inputs, for the positions, which the official network keeps among its weights.

    Returns:
        Dict of float32 NumPy arrays: the state dict of the official network.

    Raises:
        ValueError: if the model is not built, or has no official counterpart.
    """
    _check_counterpart(model)
    if not model.built or model.input_rank != 2:
        raise ValueError("`model` must be built, for images. Received: a model that is not")
    grid, _ = patch_grid((None, *size, model.channels), model.patch_size)
    state = {POSITIONS: sincos_position_embedding(grid, model.d_model)[None]}
    for name, (variable, _, outward) in _table(model).items():
        state[name] = outward(ops.convert_to_numpy(variable))
    return {name: weight.astype("float32") for name, weight in state.items()}


def _check_counterpart(model):
    if model.num_classes is None or model.context_dim is not None or model.query_key_norm:
        raise ValueError(
            "`model` must have class labels, no context and no query-key norm, as the official DiT. Received: "
            f"num_classes={model.num_classes}, context_dim={model.context_dim}, query_key_norm={model.query_key_norm}"
        )


def _table(model):
    """Official name -> our variable, the way from the official weight to ours, and the way back."""
    patch = (model.patch_size,) * 2 if isinstance(model.patch_size, int) else model.patch_size
    kernel = (*patch, model.channels, model.d_model)
    table = {}

    def dense(name, layer, inward=np.transpose, outward=np.transpose):
        table[f"{name}.weight"] = (layer.kernel, inward, outward)
        table[f"{name}.bias"] = (layer.bias, np.asarray, np.asarray)

    dense(
        "x_embedder.proj",
        model.patch_embedding,
        lambda weight: weight.transpose(2, 3, 1, 0).reshape(-1, model.d_model),  # (D, C, p, q) -> (p q C, D)
        lambda weight: weight.reshape(kernel).transpose(3, 2, 0, 1),
    )
    dense("t_embedder.mlp.0", model.time_embedding.dense1)
    dense("t_embedder.mlp.2", model.time_embedding.dense2)
    table["y_embedder.embedding_table.weight"] = (model.label_embedding.table, np.asarray, np.asarray)
    for i, block in enumerate(model.blocks):
        dense(f"blocks.{i}.attn.qkv", block.mha.query_key_value_dense)
        dense(f"blocks.{i}.attn.proj", block.mha.output_dense)
        dense(f"blocks.{i}.mlp.fc1", block.ffn1)
        dense(f"blocks.{i}.mlp.fc2", block.ffn2)
        dense(f"blocks.{i}.adaLN_modulation.1", block.modulation)
    dense("final_layer.linear", model.final_dense)
    dense("final_layer.adaLN_modulation.1", model.final_modulation)
    return table


def _some(names, count=5):
    """The first few names of a list."""
    if not names:
        return "none"
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
