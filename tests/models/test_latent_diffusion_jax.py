"""The whole way on the JAX backend, in a process where TensorFlow can not be imported."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("jax", reason="the JAX backend needs JAX")

SCRIPT = """
    import sys
    sys.modules["tensorflow"] = None

    import keras
    import numpy as np

    import keras_vqdit as kv

    assert keras.backend.backend() == "jax"
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels = np.arange(128) % 2
    images = np.where(labels[:, None, None, None] == 0, -0.5, 0.5) + rng.normal(0, 0.05, (128, 8, 8, 1))
    data = {"image": images.astype("float32"), "label": labels.astype("int32")}

    encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 4, 4)])
    decoder = keras.Sequential([keras.Input((2, 2, 2)), keras.layers.Conv2DTranspose(1, 4, 4)])
    tokenizer = kv.VQVAE(encoder, decoder, num_embeddings=8, embedding_dim=2)
    tokenizer.compile(keras.optimizers.Adam(1e-2))
    logs = tokenizer.fit(data, epochs=20, batch_size=32, verbose=0).history
    assert logs["reconstruction_loss"][-1] < 0.05, logs["reconstruction_loss"]
    assert logs["codebook_usage"][-1] > 0.1  # metrics reach the trainer

    model = kv.LatentDiffusion(tokenizer, kv.DiffusionTransformer(32, 2, 64, 2, num_classes=2), seed=0)
    model.compile(keras.optimizers.Adam(3e-3))
    losses = model.fit(data, epochs=40, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < losses[0], losses
    assert int(model.ema_steps) == 160
    drawn = model.generate([0] * 8 + [1] * 8, num_steps=10, guidance_scale=2.0, seed=0, verbose=0)
    again = model.generate([0] * 8 + [1] * 8, num_steps=10, guidance_scale=2.0, seed=0, verbose=0)
    np.testing.assert_array_equal(drawn, again)
    # A dark class and a bright one: the drawn images know which is which.
    assert drawn[:8].mean() < -0.2 and drawn[8:].mean() > 0.2, (drawn[:8].mean(), drawn[8:].mean())
    model.save("model.keras")
    loaded = keras.saving.load_model("model.keras")
    np.testing.assert_allclose(
        loaded.generate([0, 1], num_steps=5, seed=1, verbose=0), model.generate([0, 1], num_steps=5, seed=1, verbose=0), atol=1e-5
    )
    print("done")
"""


def test_train_draw_and_save(tmp_path):
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0 and "done" in run.stdout, run.stderr[-3000:]
