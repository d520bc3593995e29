"""The API reference builds without a warning and describes all that is public; links in documents lead somewhere."""

import html.parser
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import types
import urllib.parse
import warnings
from pathlib import Path

import pytest

import keras_vqdit

ROOT = Path(__file__).parents[1]
ROOMS = [name for name in keras_vqdit.__all__ if isinstance(getattr(keras_vqdit, name), types.ModuleType)]


# === The API reference ===


class Page(html.parser.HTMLParser):
    """What a page has: names, links, and its words by where they stand.

    Args:
        path: the HTML file.
    """

    def __init__(self, path):
        super().__init__()
        self.names, self.links, self.headings, self.code, self.prose = [], [], [], [], []
        self.inside = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.names += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes[key] for key in ("href", "src") if key in attributes]
        if attributes.get("http-equiv") == "refresh":
            self.links.append(attributes["content"].partition("url=")[2])
        if tag in ("pre", "script", "style", "code", "h6", "nav", "section"):
            self.inside.append(tag)
            if tag in ("pre", "h6", "code"):
                {"pre": self.code, "h6": self.headings, "code": self.code}[tag].append("")

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        where = {"script", "style", "nav", "pre", "code", "h6"} & set(self.inside)
        if where <= {"pre", "code"} and where:
            self.code[-1] += data
        elif where == {"h6"}:
            self.headings[-1] += data
        elif not where:
            self.prose.append(data)


def names(module):
    """The public names of a module."""
    defined = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.getmodule(value) is module and callable(value)
    ]
    return getattr(module, "__all__", defined)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the reference, and the process that wrote it."""
    out = tmp_path_factory.mktemp("reference") / "api"
    command = [sys.executable, str(ROOT / "docs" / "build.py"), "--out", str(out)]
    return out, subprocess.run(command, capture_output=True, text=True, cwd=out.parent)


@pytest.fixture(scope="module")
def pages(built):
    out, run = built
    assert run.returncode == 0, run.stderr
    return {path: Page(path) for path in sorted(out.rglob("*.html"))}


def test_builds_in_silence(built):
    out, run = built
    assert (run.returncode, run.stderr) == (0, "")
    assert {path.stem for path in (out / "keras_vqdit").iterdir()} == set(ROOMS)
    assert {path.name for path in out.iterdir()} == {"index.html", "keras_vqdit", "keras_vqdit.html", "search.js"}


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_describes_what_is_public(room, built, pages):
    module = importlib.import_module(f"keras_vqdit.{room}".strip("."))
    page = pages[built[0] / f"{module.__name__.replace('.', '/')}.html"]
    assert names(module)
    assert not set(names(module)) - set(page.names)


def test_links_of_the_reference(pages):
    for path, page in pages.items():
        assert len(page.names) == len(set(page.names)), path
        for link in page.links:
            target, _, anchor = urllib.parse.unquote(link).partition("#")
            if re.match(r"\w+:", target):
                continue
            found = (path.parent / target).resolve() if target else path
            assert found.is_file(), f"{path}: {link}"
            assert not anchor or anchor in pages[found].names, f"{path}: {link}"


def test_sections_are_rendered(built, pages):
    sections = {"Arguments", "Call arguments", "Returns", "Raises", "Attributes", "Example", "References"}
    assert {heading for page in pages.values() for heading in page.headings} == sections
    for path, page in pages.items():
        prose = "".join(page.prose)
        for raw in (r"^ *(Args|Call arguments|Returns|Raises|Example|References):", r"`", r">>>", r"\]\(", r"#{2,}"):
            assert not re.search(raw, prose, re.MULTILINE), f"{path}: {raw}"
    layers = pages[built[0] / "keras_vqdit" / "layers.html"]
    assert {"(B, *grid, D)", "(B, *(spatial / factor), filters)"} <= set(layers.code)
    assert any(
        code.startswith(">>> vq = VectorQuantizer(") and "((8, 7, 7, 16), (8,))\n" in code for code in layers.code
    )
    models = (built[0] / "keras_vqdit" / "models.html").read_text(encoding="utf-8")
    argument = r"<li><strong>encoder</strong>: layer or model from data <code>\(B, \*spatial, C\)</code>"
    assert re.search(argument, models)
    assert "<em>" not in models  # shapes such as `(B, *grid)` that were taken for emphasis


def test_says_nothing_of_what_comes_from_keras(built, pages):
    described = pages[built[0] / "keras_vqdit" / "models.html"].names
    assert {"VQVAE.encode", "VQVAE.encode_latents", "VQVAE.from_preset", "MultimodalDiffusion.generate"} <= set(
        described
    )
    assert not {"VQVAE.summary", "VQVAE.call", "VQVAE.add_weight", "VQVAE.get_config", "VQVAE.__init__"} & set(
        described
    )


@pytest.fixture
def build():
    """`docs/build.py` as a module."""
    specification = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_warnings_are_errors(build, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "render", lambda modules: warnings.warn("what pdoc does not understand", stacklevel=2))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["build.py", "--out", str(tmp_path / "api")])
    with pytest.raises(UserWarning, match="does not understand"):
        build.main()
    assert not (tmp_path / "api").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("Draw.\n\nParameters:\n    x: what.\n", "not a section of docstrings: Parameters"),
        ("Draw.\n\nArgs:\n    x: what.\n    and not what.\n", "expected `name: text`, got 'and not what.'"),
        ("Draw.\n\nArgs:\n    x: what.\n\nMore.\n", "expected `name: text`"),
    ],
)
def test_sections_that_can_not_be_rendered(text, message, build):
    with pytest.raises(ValueError, match=re.escape(message)):
        build.to_markdown(text)


def test_names_without_a_docstring(build):
    module = types.ModuleType("keras_vqdit_silent")
    module.__doc__, module.__all__ = "A room.", ["silent"]
    module.silent = lambda: None
    page = build.pdoc.doc.Module(module)
    with pytest.raises(ValueError, match="without a docstring: keras_vqdit_silent.silent"):
        build.describe(page, None)


# === The written documents ===


def documents():
    """All documents whose links are checked, from the root of the checkout."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "saved_models" / "README.md"]
    for pattern in ("docs/*.md", "notebooks/*.md", "notebooks/*.ipynb", "notebooks/*.py"):
        found += sorted(ROOT.glob(pattern))
    return found


def markdown(path):
    """The Markdown of a file, without blocks of code; of a notebook, or the script of one, that of its cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join(cell if isinstance(cell, str) else "".join(cell) for cell in cells)
    elif path.suffix == ".py":
        cells = re.findall(r"^# %% \[markdown\].*\n((?:#.*\n)*)", text, re.MULTILINE)
        text = "\n\n".join(re.sub(r"^# ?", "", cell, flags=re.MULTILINE) for cell in cells)
    return re.sub(r"^ *(```+|~~~+).*?^ *\1 *$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """What GitHub calls the headings of a Markdown text, and what HTML in it is called."""
    found = re.findall(r"""<[^>]*\b(?:id|name)=["']([^"']+)""", text)
    for heading in re.findall(r"^ {0,3}#{1,6} +(.*?)(?: +#+)? *$", text, re.MULTILINE):
        heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link counts by its text
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        count = sum(bool(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other)) for other in found)
        found.append(f"{slug}-{count}" if count else slug)
    return found


def broken_links(path):
    """The links and images of a document that lead nowhere, of those that lead to no other site."""
    text = markdown(path)
    prose = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text, flags=re.DOTALL)
    links = re.findall(r"\]\(\s*<?([^)\s>]+)", prose)
    links += re.findall(r"^ {0,3}\[[^\]]+\]: *<?([^\s>]+)", prose, re.MULTILINE)
    links += re.findall(r"""<(?:a|img)\b[^>]*\b(?:href|src)=["']([^"']+)""", prose)
    broken = []
    for link in links:
        target, _, anchor = urllib.parse.unquote(link).partition("#")
        if re.match(r"[A-Za-z][A-Za-z+.-]*:|//", target):  # of another site, or attached
            continue
        found = path if not target else ROOT / target[1:] if target.startswith("/") else path.parent / target
        if not found.exists() or (
            anchor and found.suffix in (".md", ".ipynb", ".py") and anchor not in anchors(markdown(found))
        ):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_documents(path):
    assert not broken_links(path)


def test_broken_links_are_found(tmp_path):
    """The checks above, on a document and a notebook that break what they can."""
    (tmp_path / "there.md").write_text(
        "# `kv.data`: what *it* does, and [where](x)\n\n## Twice\n\n## Twice\n\n### Ünï çödé_1\n"
    )
    text = """
# Here
[a](there.md) [b](there.md#kvdata-what-it-does-and-where) [c](there.md#twice-1) [d](#here) [e](https://example.org/#x)
[f](there.md#ünï-çödé_1) `[g](nowhere)` [h](there.md#%C3%BCn%C3%AF-%C3%A7%C3%B6d%C3%A9_1)
![i](gone.png) [j](there.md#thrice) [k](#there) [![l](gone.svg)](there.md) <img src="gone.jpg" width="3">

[m]: gone.md

```sh
[n](nowhere)  # in code
```
"""
    broken = ["gone.png", "there.md#thrice", "#there", "gone.svg", "gone.md", "gone.jpg"]
    (tmp_path / "document.md").write_text(text)
    assert broken_links(tmp_path / "document.md") == broken
    cells = [
        {"cell_type": "markdown", "source": text.splitlines(keepends=True)},
        {"cell_type": "code", "source": "[o](p)"},
    ]
    (tmp_path / "notebook.ipynb").write_text(json.dumps({"cells": cells}))
    assert broken_links(tmp_path / "notebook.ipynb") == broken
    lines = "".join(f"# {line}\n" for line in text.splitlines())
    (tmp_path / "notebook.py").write_text(f"# %% [markdown]\n{lines}\n# %%\nx = 1  # [o](p)\n")
    assert broken_links(tmp_path / "notebook.py") == broken
