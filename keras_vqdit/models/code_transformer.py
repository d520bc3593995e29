"""The network of masked diffusion: predicts the masked codes of several modalities from those that are left."""

import math

import keras
import numpy as np
from keras import layers, ops

from keras_vqdit.checks import fits, positive_integer
from keras_vqdit.layers.embeddings import sincos_position_embedding
from keras_vqdit.layers.transformer_block import TransformerBlock


@keras.saving.register_keras_serializable("keras_vqdit")
class CodeTransformer(keras.Model):
    """Transformer from the codes of one or several modalities, some of them masked, to logits of each code.

    All positions of all modalities form one sequence, which plain blocks attend over in both directions. A position is the
    embedding of its code plus that of its place (fixed sines and cosines: of rows and columns for grids) plus that of its
    modality; rotary embedding tells how far apart two positions of a modality are. The L codes of a position with residual
    levels are one position, the sum of their embeddings, with L predictions. The network needs no time: the masks tell it.

    Args:
        modalities: dict of names and dicts with `num_embeddings`, the number K of codes; `shape`, that of the codes of an
            example; and `num_levels`, the number L of levels if these are the last axis of the shape, else `None`.
        d_model: width of the sequence.
        num_heads: attention heads; must divide `d_model`, into parts of an even width of at least two for each axis of a
            modality's grid.
        dff: width of the feed-forward networks.
        num_layers: number of blocks.
        rate: dropout rate. Defaults to 0, which costs nothing.

    Call arguments:
        codes: dict of all modalities, integers `(B, *shape)` from 0 to K, where K is a mask.
        training: whether to drop.

    Returns:
        Dict of logits `(B, *shape, K)`, float32 under every dtype policy but float64.

    Raises:
        ValueError: if an argument has an impossible value, or codes are missing or of another shape.

    Example:

    ```python
    import numpy as np
    from keras_vqdit.models.code_transformer import CodeTransformer

    modalities = {
        "image": {"num_embeddings": 512, "shape": (7, 7), "num_levels": None},
        "audio": {"num_embeddings": 256, "shape": (48, 4), "num_levels": 4},
    }
    network = CodeTransformer(modalities, d_model=64, num_heads=2, dff=256, num_layers=2)
    logits = network({"image": np.full((3, 7, 7), 512), "audio": np.full((3, 48, 4), 256)})
    logits["audio"].shape  # (3, 48, 4, 256)
    ```
    """

    def __init__(self, modalities, d_model, num_heads, dff, num_layers, rate=0.0, **kwargs):
        super().__init__(autocast=False, **kwargs)  # codes are no numbers to round
        self.modalities = {name: _checked(name, one) for name, one in modalities.items()}
        if not self.modalities:
            raise ValueError("`modalities` must hold at least one modality. Received: none")
        self.d_model, self.num_heads, self.dff = d_model, num_heads, dff
        self.num_layers, self.rate = positive_integer("num_layers", num_layers), rate
        self.grids = [_grid(one) for one in self.modalities.values()]

        # === Layers ===
        policy = self.dtype_policy
        self.embeddings = [
            CodeEmbedding(d_model, one["num_embeddings"], one["num_levels"], dtype=policy, name=f"{name}_embedding")
            for name, one in self.modalities.items()
        ]
        self.blocks = [
            TransformerBlock(d_model, num_heads, dff, rate, rotary_grids=self.grids, dtype=policy, name=f"block_{i}")
            for i in range(self.num_layers)
        ]
        self.final_norm = layers.LayerNormalization(epsilon=1e-6, dtype=policy, name="final_norm")
        self.final_dense = [
            layers.Dense(
                one["num_embeddings"] * (one["num_levels"] or 1),
                kernel_initializer="zeros",
                dtype=self.variable_dtype,  # what leaves the model is not rounded to half precision
                name=f"final_{name}",
            )
            for name, one in self.modalities.items()
        ]
        self.build()

    def build(self, input_shape=None):
        tokens = (None, None, self.d_model)
        for layer in (*self.embeddings, *self.blocks, self.final_norm, *self.final_dense):
            layer.build(tokens)
        self.built = True

    def call(self, codes, training=None):
        return self._forward(codes, training)

    def attention_scores(self, codes):
        """Where each position of each block looks.

        Args:
            codes: as in the call: a dict, masks and all.

        Returns:
            float32 tensor `(num_layers, B, num_heads, N, N)` of the N positions of all modalities, in the order of `modalities`;
            it sums to 1 over the last axis.
        """
        scores = []
        self._forward({name: ops.convert_to_tensor(one) for name, one in codes.items()}, False, scores)
        return ops.stack(scores)

    def _forward(self, codes, training, scores=None):
        """The logits; the weights of each block's attention are added to the list `scores`, where there is one."""
        self._check(codes)
        parts, lengths = [], []
        for (name, one), grid, embedding in zip(self.modalities.items(), self.grids, self.embeddings, strict=True):
            levels = () if one["num_levels"] is None else (one["num_levels"],)
            x = embedding(ops.reshape(codes[name], (-1, math.prod(grid), *levels)))  # (B, N, D)
            parts.append(x + ops.cast(sincos_position_embedding(grid, self.d_model), x.dtype))
            lengths.append(math.prod(grid))
        x = ops.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        for block in self.blocks:
            if scores is None:
                x = block(x, training=training)
            else:
                x, weights = block(x, return_attention_scores=True, training=training)
                scores.append(weights)
        x = self.final_norm(x)

        logits, begin = {}, 0
        for (name, one), dense, length in zip(self.modalities.items(), self.final_dense, lengths, strict=True):
            shape = (-1, *one["shape"], one["num_embeddings"])
            logits[name] = ops.reshape(dense(x[:, begin : begin + length]), shape)
            begin += length
        return logits

    def _check(self, codes):
        for name, one in self.modalities.items():
            if name not in codes:
                raise ValueError(f"Codes must be a dict of {sorted(self.modalities)}. Received: {sorted(codes)}")
            if not fits(codes[name].shape[1:], one["shape"]):
                raise ValueError(
                    f'Codes of "{name}" must be of shape {(None, *one["shape"])}. Received: {tuple(codes[name].shape)}'
                )

    def compute_output_spec(self, codes, training=None):
        self._check(codes)
        return {
            name: keras.KerasTensor((*codes[name].shape, one["num_embeddings"]), dtype=self.variable_dtype)
            for name, one in self.modalities.items()
        }

    def get_config(self):
        return {
            **super().get_config(),
            "modalities": {name: {**one, "shape": list(one["shape"])} for name, one in self.modalities.items()},
            "d_model": self.d_model,
            "num_heads": self.num_heads,
            "dff": self.dff,
            "num_layers": self.num_layers,
            "rate": self.rate,
        }


@keras.saving.register_keras_serializable("keras_vqdit")
class CodeEmbedding(layers.Layer):
    """Embed codes: a table of K + 1 rows, the last of which is the mask, for each level; plus one row for the modality.

    Args:
        d_model: width of the embedding.
        num_embeddings: number K of codes.
        num_levels: number L of residual levels, whose embeddings are added up. Defaults to `None`, without that axis.

    Call arguments:
        codes: integers `(B, N)`, or `(B, N, L)`, from 0 to K.

    Returns:
        `(B, N, d_model)`.

    Example:
    >>> import numpy as np
    >>> tuple(CodeEmbedding(32, 256, num_levels=4)(np.zeros((2, 48, 4), "int32")).shape)
    (2, 48, 32)
    """

    def __init__(self, d_model, num_embeddings, num_levels=None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.d_model = positive_integer("d_model", d_model)
        self.num_embeddings = positive_integer("num_embeddings", num_embeddings)
        self.num_levels = None if num_levels is None else positive_integer("num_levels", num_levels)

    def build(self, input_shape=None):
        # As large as the sines and cosines of the positions together, or training begins by growing it.
        initializer = keras.initializers.RandomNormal(stddev=0.5)
        rows = (self.num_levels or 1) * (self.num_embeddings + 1)
        self.table = self.add_weight(shape=(rows, self.d_model), initializer=initializer, name="table")
        self.modality = self.add_weight(shape=(self.d_model,), initializer=initializer, name="modality")
        self.built = True

    def call(self, codes):
        codes = ops.cast(codes, "int32")
        if self.num_levels is not None:
            codes = codes + (self.num_embeddings + 1) * np.arange(self.num_levels, dtype="int32")
        # Not the table itself: TensorFlow would give it a gradient of its own kind, which Adam squares row by row.
        x = ops.take(self.table * 1.0, codes, axis=0)
        x = x if self.num_levels is None else ops.sum(x, axis=-2)
        return ops.cast(x + self.modality, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:2], self.d_model)

    def get_config(self):
        return {
            **super().get_config(),
            "d_model": self.d_model,
            "num_embeddings": self.num_embeddings,
            "num_levels": self.num_levels,
        }


def _checked(name, modality):
    """A modality with its sizes checked."""
    codes = positive_integer(f"{name}: num_embeddings", modality["num_embeddings"])
    shape = tuple(positive_integer(f"{name}: shape", size) for size in modality["shape"])
    levels = modality.get("num_levels")
    if not shape or (levels is not None and (len(shape) < 2 or shape[-1] != levels)):
        raise ValueError(
            f'The codes of "{name}" must be of shape (length,), (height, width) or the like, with num_levels={levels} as '
            f"the last axis if there are levels. Received: shape={shape}"
        )
    return {"num_embeddings": codes, "shape": shape, "num_levels": levels}


def _grid(modality):
    """The places of a modality: the shape of its codes without the levels."""
    return modality["shape"] if modality["num_levels"] is None else modality["shape"][:-1]
