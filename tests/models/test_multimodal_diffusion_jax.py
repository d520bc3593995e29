"""Any to any on the JAX backend, in a process where TensorFlow can not be imported."""

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
    names = np.array(["aa", "bb", "cc"])
    label = np.arange(96) % 3
    tokenizers = {
        "audio": kv.TextTokenizer.train(["xyz"], max_length=2),
        "text": kv.TextTokenizer.train(["abc"], max_length=2),
    }
    sounds = np.array(["xx", "yy", "zz"])
    data = {"audio": list(sounds[label]), "text": list(names[label]), "has_audio": np.arange(96) % 5 > 0}
    model = kv.MultimodalDiffusion(tokenizers, 16, 2, num_layers=1, seed=0)
    model.compile(keras.optimizers.Adam(1e-2))
    logs = model.fit(data, epochs=40, batch_size=32, verbose=0).history
    assert logs["text_loss"][-1] < 0.7 * logs["text_loss"][0], logs["text_loss"]  # metrics reach the trainer
    assert int(model.ema_steps) == 120
    options = {"want": ["audio"], "num_steps": 2, "temperature": 0, "noise": 0, "seed": 0, "verbose": 0}
    assert model.generate({"text": list(names)}, **options)["audio"] == list(sounds)
    scores = model.score({"audio": list(sounds)}, {"text": list(names)}, num_samples=4)
    assert scores.argmax(axis=1).tolist() == [0, 1, 2], scores
    wrong = {"text": np.full((32, 2), 99)}
    assert np.isnan(model.predict(wrong, verbose=0)["text_loss"]).all()  # a compiled program can not raise
    model.save("model.keras")
    loaded = keras.saving.load_model("model.keras")
    assert loaded.generate({"text": list(names)}, **options)["audio"] == list(sounds)
    print("done")
"""


def test_train_draw_score_and_save(tmp_path):
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
