"""Data of several modalities as codes, and back."""

import keras
import numpy as np
from keras import ops

from keras_vqdit.checks import check_range, fits, known_values, one_of, positive_integer
from keras_vqdit.models.generation import equal_batches

UNKNOWN = -1  # a code that is not known, and trains nothing
INVALID = -2  # one that is none: of data that are not finite, or out of range in a data set


class Coding:
    """The part of `MultimodalDiffusion` that makes codes of data by its tokenizers, and data of codes."""

    # === Of batches for training ===

    def codes(self, inputs):
        """The codes of a batch.

        Args:
            inputs: as of the call.

        Returns:
            Dict of all modalities, int32 `(B, *code_shape)`, -1 where they are missing, and -2 where a compiled program gets
            data that are not finite, or codes out of range.

        Raises:
            ValueError: if there is none, one has a wrong shape or another number of examples, or known codes are out of range.
        """
        inputs = self._as_dict(inputs)
        there = [name for name in self.modalities if inputs.get(name) is not None]
        if not there:
            raise ValueError(
                f"The data must have at least one of the keys {list(self.modalities)}. Received: keys {sorted(inputs)}"
            )
        flags = [f"has_{name}" for name in there if inputs.get(f"has_{name}") is not None]
        sizes = {key: inputs[key].shape[0] for key in (*there, *flags)}
        if len({*sizes.values()} - {None}) > 1:
            raise ValueError(f"The data must have equally many examples under every key. Received: {sizes}")
        codes = {name: self._encode(name, inputs[name]) for name in there}
        batch = ops.shape(codes[there[0]])[0]
        for name in self.modalities:
            shape = self.code_shapes[name]
            if name not in codes:
                codes[name] = ops.full((batch, *shape), UNKNOWN, "int32")
            elif f"has_{name}" in flags:
                present = ops.reshape(ops.cast(inputs[f"has_{name}"], "bool"), (-1, *(1,) * len(shape)))
                codes[name] = ops.where(present, codes[name], UNKNOWN)
        return codes

    def _as_dict(self, inputs):
        if isinstance(inputs, dict):
            return inputs
        if len(self.modalities) > 1:
            raise ValueError(f"The data must be dicts with keys of {list(self.modalities)}. Received: {type(inputs)}")
        return {self.modalities[0]: inputs}

    def _encode(self, name, x):
        """Data, or codes, of a modality as codes."""
        dtype = x.dtype.name if isinstance(x, np.ndarray) else keras.backend.standardize_dtype(x.dtype)
        if "float" in dtype:
            if not isinstance(self.tokenizers[name], keras.layers.Layer):
                raise ValueError(f'"{name}" must be codes, integers, in a data set. Received: dtype={dtype}')
            shape = getattr(self.tokenizers[name], "example_shape", None)
            if shape is not None and not fits(x.shape[1:], shape):
                raise ValueError(f'"{name}" must be of shape {(None, *shape)}. Received: {tuple(x.shape)}')
            codes = ops.stop_gradient(ops.cast(self.tokenizers[name].encode(x), "int32"))
            finite = ops.all(ops.isfinite(x), axis=but_first(x))
            return ops.where(ops.reshape(finite, (-1, *(1,) * (len(codes.shape) - 1))), codes, INVALID)
        if "int" not in dtype:
            raise ValueError(
                f'"{name}" must be floats for its tokenizer, or integer codes: encode texts in a data set first, as '
                f"`tokenizer.encode(texts)` or `keras_vqdit.data.encode_codes` do. Received: dtype={dtype}"
            )
        if not fits(x.shape[1:], self.code_shapes[name]):
            raise ValueError(
                f'Codes of "{name}" must be of shape {(None, *self.code_shapes[name])}. Received: {tuple(x.shape)}; data must '
                "be floats"
            )
        values = known_values(x)
        if values is not None and values.size and not UNKNOWN <= values.min() <= values.max() < self.mask_codes[name]:
            raise ValueError(
                f'Codes of "{name}" must be from 0 to {self.mask_codes[name] - 1}, or -1 where they are missing. '
                f"Received: codes from {values.min()} to {values.max()}"
            )
        x = ops.cast(x, "int32")
        return ops.where((x >= UNKNOWN) & (x < self.mask_codes[name]), x, INVALID)

    def prepare_arrays(self, x):
        """Texts among arrays become codes; codes are checked as a whole."""
        x = self._as_dict(x) if isinstance(x, list) or hasattr(x, "shape") else x
        if not isinstance(x, dict):
            return x
        x = dict(x)
        for name in self.modalities:
            value, flags = x.get(name), x.get(f"has_{name}")
            texts, takes_texts = are_texts(value), not isinstance(self.tokenizers[name], keras.layers.Layer)
            if takes_texts and (texts or isinstance(value, (list, tuple))):
                x[name] = np.asarray(self.tokenizers[name].encode(value))
            elif texts or (isinstance(value, np.ndarray) and value.dtype.kind in "iu"):
                self._encode(name, np.asarray(value))
            elif isinstance(value, np.ndarray) and not takes_texts:
                check_range(name, value)
            if isinstance(flags, np.ndarray) and not (flags.ndim == 1 and np.all((flags == 0) | (flags == 1))):
                raise ValueError(
                    f'"has_{name}" must be bools, one for each example. Received: {flags.dtype}, shape={flags.shape}'
                )
        return x

    # === Of what is drawn or scored ===

    def known_codes(self, given, num_samples):
        """Codes of all modalities as NumPy arrays, masks where nothing is known, and the number of examples."""
        if not isinstance(given, dict) or not set(given) <= set(self.modalities):
            received = [*given] if isinstance(given, dict) else type(given).__name__
            raise ValueError(
                f"What is given must be a dict of modalities among {list(self.modalities)}. Received: {received}"
            )
        codes = {}
        for name, value in given.items():
            value = [value] if isinstance(value, (str, bytes)) else value
            if not isinstance(self.tokenizers[name], keras.layers.Layer):
                raw = are_texts(value) or not hasattr(value, "shape")
                value = self.tokenizers[name].encode(value) if raw else value
            value = _as_array(name, value)
            values = np.asarray(value)
            if values.dtype.kind == "f":
                if not np.all(np.isfinite(values)):
                    raise ValueError(f'"{name}" must be finite. Received: NaN or infinite values')
                if isinstance(self.tokenizers[name], keras.layers.Layer):
                    check_range(name, values)
            parts = [
                ops.convert_to_numpy(self._encode(name, value[i : i + 256])) for i in range(0, len(value), 256)
            ] or [np.zeros((0, *self.code_shapes[name]), "int32")]
            codes[name] = np.concatenate(parts)
        sizes = {name: len(one) for name, one in codes.items()}
        if num_samples is not None:
            sizes["num_samples"] = positive_integer("num_samples", num_samples)
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            raise ValueError(
                f"What is given, and `num_samples`, must agree on the number of examples, at least one. Received: {sizes}"
            )
        count = next(iter(sizes.values()), 1)
        for name, mask in self.mask_codes.items():
            found = codes.get(name)
            codes[name] = (
                np.full((count, *self.code_shapes[name]), mask, "int32")
                if found is None
                else np.where(found < 0, mask, found).astype("int32")
            )
        return {name: codes[name] for name in self.modalities}, count

    def decode(self, name, codes, batch_size=64):
        """Data of codes: float32 in [-1, 1], or a list of texts.

        Args:
            name: the modality.
            codes: integers `(B, *code_shape)`.
            batch_size: at most so many at a time. Defaults to 64.

        Raises:
            ValueError: if there are none, their shape does not fit, or one is none of the tokenizer's.
        """
        tokenizer = self.tokenizers[one_of("name", name, self.modalities)]
        if not isinstance(tokenizer, keras.layers.Layer):
            return tokenizer.decode(codes)
        codes, shape = np.asarray(codes), self.code_shapes[name]
        known = codes.dtype.kind in "iu" and np.all((codes >= 0) & (codes < self.mask_codes[name]))
        if not known or not fits(codes.shape[1:], shape) or not len(codes):
            raise ValueError(
                f'Codes of "{name}" must be integers from 0 to {self.mask_codes[name] - 1} of shape {("B", *shape)}, of at '
                f"least one example. Received: {codes.dtype}, shape={codes.shape}"
            )
        parts = []
        for rows, kept in equal_batches(len(codes), batch_size):
            data = ops.clip(ops.cast(tokenizer.decode(ops.convert_to_tensor(codes[rows])), "float32"), -1.0, 1.0)
            parts.append(ops.convert_to_numpy(data)[:kept])
        return np.concatenate(parts)


def are_texts(x):
    """Whether it is an array, a list or a tuple of texts."""
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "USO"
    return isinstance(x, (list, tuple)) and len(x) > 0 and all(isinstance(one, (str, bytes)) for one in x)


def _as_array(name, value):
    """Data as they came, or as an array, in float32 instead of float64."""
    try:
        value = value if hasattr(value, "dtype") and hasattr(value, "shape") else np.asarray(value)
    except ValueError as error:  # NumPy's, of lists that are uneven
        raise ValueError(f'"{name}" must be an array. Received: a list whose parts differ in size') from error
    if not len(value.shape) or "object" in str(value.dtype):
        raise ValueError(f'"{name}" must be an array of examples. Received: {value!r:.80}')
    return value.astype("float32") if value.dtype == np.float64 else value


def but_first(x):
    return tuple(range(1, len(x.shape)))
