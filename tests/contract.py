"""One helper that checks what every layer and model of the package promises."""

import os

import keras
import numpy as np
from keras import ops


def tolerance(policy):
    return {"float32": 1e-5, "mixed_float16": 2e-2, "mixed_bfloat16": 1e-1}[policy]


def flatten(outputs):
    return [ops.convert_to_numpy(ops.cast(v, "float32")) for v in keras.tree.flatten(outputs)]


def run_contract(
    build, inputs, *, tmp_path, call_kwargs=None, policies=("mixed_float16", "mixed_bfloat16"), symbolic=True
):
    """Check a layer's or a model's contract: config and `.keras` round trips, dtype policies, symbolic shapes.

    Args:
        build: function of keyword arguments (`dtype=`) that makes a new layer or model.
        inputs: NumPy array, or a dict, list or tuple of them, for `call`.
        tmp_path: folder for the saved model.
        call_kwargs: keyword arguments of `call`.
        policies: dtype policies to try beside float32.
        symbolic: also compare the symbolic output shapes and dtypes with the eager ones.

    Returns:
        The layer or model that was checked, built, in float32.
    """
    call_kwargs = call_kwargs or {}
    layer = build()
    expected = flatten(layer(inputs, **call_kwargs))

    # === Config ===
    config = layer.get_config()
    clone = layer.__class__.from_config(config)
    assert clone.get_config().keys() == config.keys()
    clone(inputs, **call_kwargs)
    clone.set_weights(layer.get_weights())
    for a, b in zip(flatten(clone(inputs, **call_kwargs)), expected):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)

    # === Symbolic shapes ===
    if symbolic:
        spec = keras.tree.map_structure(lambda v: keras.KerasTensor(v.shape, dtype=str(v.dtype)), inputs)
        symbols = keras.tree.flatten(layer(spec, **call_kwargs))
        assert [tuple(s.shape) for s in symbols] == [v.shape for v in expected]

    # === Saving ===
    path = os.path.join(tmp_path, "contract.keras")
    if isinstance(layer, keras.Model):
        model = layer
    else:
        model = _Wrapper(build(), call_kwargs)
        model(inputs)
        model.set_weights(layer.get_weights())
    model.save(path)
    loaded = keras.saving.load_model(path, custom_objects={"_Wrapper": _Wrapper})
    kwargs = call_kwargs if isinstance(layer, keras.Model) else {}
    for a, b in zip(flatten(loaded(inputs, **kwargs)), expected):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)

    # === Dtype policies ===
    for policy in policies:
        other = build(dtype=policy)
        other(inputs, **call_kwargs)
        other.set_weights(layer.get_weights())
        for a, b in zip(flatten(other(inputs, **call_kwargs)), expected):
            assert np.all(np.isfinite(a)), policy
            scale = max(1.0, float(np.max(np.abs(b))) if b.size else 1.0)
            assert np.max(np.abs(a - b)) <= tolerance(policy) * scale, policy
    return layer


class _Wrapper(keras.Model):
    """A model around one layer, so that the layer can be saved."""

    def __init__(self, layer, call_kwargs=None, **kwargs):
        super().__init__(**kwargs)
        self.layer, self.call_kwargs = layer, call_kwargs or {}

    def call(self, inputs):
        return self.layer(inputs, **self.call_kwargs)

    def get_config(self):
        config = super().get_config()
        config["layer"] = keras.saving.serialize_keras_object(self.layer)
        config["call_kwargs"] = self.call_kwargs
        return config

    @classmethod
    def from_config(cls, config):
        config["layer"] = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**config)
