"""Write the API reference: HTML pages of what the package's `__all__` name.

    python docs/build.py              # to docs/api/index.html
    python docs/build.py --out tmp    # elsewhere

Needs `pip install -e ".[docs]"`. A warning, Python's or pdoc's, is an error, and so is a public name without a
docstring, or a section of a docstring that would not be rendered.
"""

import argparse
import contextlib
import importlib
import inspect
import os
import re
import sys
import tempfile
import types
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jinja2
import pdoc.doc
import pdoc.doc_ast
import pdoc.render
import pdoc.render_helpers
from markupsafe import Markup

FOLDER = Path(__file__).resolve().parent
PACKAGE = "keras_vqdit"
LISTS = ("Args", "Call arguments", "Raises", "Attributes")  # sections of lines `name: text`
SECTIONS = (*LISTS, "Returns", "Yields", "Example", "References")
# What the libraries of TensorFlow say of the machine before any setting reaches them.
MACHINE = re.compile(r"WARNING: All log messages before absl|[IWE]\d{4} |\d{4}-\d\d-\d\d \S+ [IWE] |To enable the ")


# === What is public ===


@contextlib.contextmanager
def without_notes_on_the_machine():
    """Show what is written to the standard error, also by libraries, but for TensorFlow's notes on the machine."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                if not MACHINE.match(line):
                    print(line, file=sys.stderr)


def public_modules():
    """The package and its public rooms, by name."""
    sys.path.insert(0, str(FOLDER.parent))
    package = importlib.import_module(PACKAGE)
    found = {PACKAGE: package}
    for name in package.__all__:
        if isinstance(room := getattr(package, name), types.ModuleType):
            found[room.__name__] = room
    return found


def public_names(module):
    """What a module's `__all__` names, without rooms; where there is none, what it defines."""
    if names := getattr(module, "__all__", None):
        return [name for name in names if not isinstance(getattr(module, name), types.ModuleType)]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


class Public:
    """The public classes and functions, and the place where each of them is described.

    Args:
        modules: dict of names and modules.
    """

    def __init__(self, modules):
        self.places = {}  # object -> (module, name)
        self.links = {}  # how docstrings call it -> (module, name)
        for module_name, module in modules.items():
            if module_name == PACKAGE:
                continue  # what it names stands in a room
            self.links[module_name] = self.links[f"kv.{module_name.partition('.')[2]}"] = (module_name, "")
            for name in public_names(module):
                place = (module_name, name)
                value = getattr(module, name)
                if callable(value) and value.__name__ == name:
                    self.places[value] = place
                room = module_name.rpartition(".")[2]
                for call in (name, f"{room}.{name}", f"kv.{room}.{name}", f"{module_name}.{name}"):
                    self.links[call] = place
        for name in public_names(modules[PACKAGE]):
            self.links[f"kv.{name}"] = self.links[f"{PACKAGE}.{name}"] = self.links[name]

    def defined_by(self, cls, name):
        """The class of the package that has the docstring of a member, or `None`."""
        for base in cls.__mro__:
            if base.__module__.partition(".")[0] == PACKAGE and name in vars(base) and docstring(vars(base)[name]):
                return base
        return None

    def shown_by(self, cls, name):
        """The class at which a member of `cls` is described: itself, or a public base; `None` for those of Keras."""
        if (defined := self.defined_by(cls, name)) is None:
            return None
        for base in cls.__mro__[1:]:
            if base in self.places and self.defined_by(base, name) is defined:
                return self.shown_by(base, name)
        return cls

    def bases(self, cls):
        """The public bases of a class, `(module, name, text)`; in place of private ones theirs."""
        found = []
        for base in cls.__bases__:
            if base in self.places:
                found.append((*self.places[base], base.__name__))
            elif base.__module__.partition(".")[0] == PACKAGE:
                found += self.bases(base)
            elif base is not object:
                found.append((base.__module__, base.__qualname__, keras_name(base)))
        return list(dict.fromkeys(found))


def keras_name(cls):
    """What a class is called by those who import it."""
    exported = vars(cls).get("_api_export_path") or f"{cls.__module__}.{cls.__qualname__}"  # one, or several
    return min([exported] if isinstance(exported, str) else exported, key=len).removeprefix("builtins.")


def docstring(member):
    """The docstring of a member of a class, its own, not that of a base."""
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    function = getattr(function, "func", function)  # of a `cached_property`
    return inspect.cleandoc(function.__doc__ or "") if inspect.isroutine(function) else ""


# === Docstrings as Markdown ===


def to_markdown(text):
    """A docstring in the style of Keras as Markdown: headings for sections, lists for arguments."""
    if unknown := set(re.findall(r"^([A-Z][A-Za-z ]*):$", text, re.MULTILINE)) - {*SECTIONS}:
        raise ValueError(f"not a section of docstrings: {', '.join(unknown)}, in\n{text}")
    before, *parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", text, flags=re.MULTILINE)
    written = [before]
    for name, body in zip(parts[::2], parts[1::2]):
        body = inspect.cleandoc("\n" + body)
        title = "Arguments" if name == "Args" else name
        written.append(f"###### {title}\n\n{items(body) if name in LISTS else body}\n")
    return "\n".join(written)


def items(body):
    """Lines `name: text`, whose text goes on in indented lines, as a list."""
    found = []
    for line in body.splitlines():
        if found and (line.startswith(" ") or not line):
            found[-1].append(line)
        elif match := re.fullmatch(r"((?:\*{0,2}\w+(?:, )?)+):(?: (.*))?", line):
            name = match[1].replace("*", r"\*")
            found.append([f"**{name}**: {match[2] or ''}"])
        else:
            raise ValueError(f"expected `name: text`, got {line!r}")
    written = []
    for first, *rest in found:
        rest = inspect.cleandoc("\n" + "\n".join(rest)).splitlines()
        written.append("\n".join([f"- {first}", *(f"    {line}".rstrip() for line in rest)]))
    return "\n".join(written)


# === Pages ===


def describe(module, public):
    """Have pdoc's description of a module tell what is public, and nothing of what comes from Keras."""
    module.docstring = to_markdown(module.docstring)
    module.members = {name: module.members[name] for name in public_names(module.obj)}
    module.own_members = list(module.members.values())
    missing = []
    for name, member in module.members.items():
        if isinstance(member, pdoc.doc.Class):
            describe_class(member, public)
        elif isinstance(member, pdoc.doc.Variable):
            describe_variable(member)
        if not member.docstring:
            missing.append(member.fullname)
        member.docstring = to_markdown(member.docstring)
        if module.modulename == PACKAGE:  # what the package names is described by its room
            member.docstring = member.docstring.split("\n\n")[0]
            member.described_in = public.links[name]
            member.members, member.own_members, member.inherited_members = {}, [], {}
    if missing:
        raise ValueError(f"without a docstring: {', '.join(missing)}")


def describe_class(cls, public):
    """Members of private bases count as the class's own; those of public ones are only named."""
    shown, cls.own_members, cls.inherited_members = {}, [], {}
    for name, member in cls.members.items():
        if name.startswith("_") or (where := public.shown_by(cls.obj, name)) is None:
            continue
        shown[name] = member
        member.docstring = to_markdown(docstring(vars(public.defined_by(cls.obj, name))[name]))
        if where is cls.obj:
            cls.own_members.append(member)
            member.taken_from = (cls.modulename, member.qualname)
        else:
            module, qualname = public.places[where]
            cls.inherited_members.setdefault((module, qualname), []).append(member)
            member.taken_from = (module, f"{qualname}.{name}")
    cls.members = shown
    cls.bases = public.bases(cls.obj)
    cls.constructor = None
    function = cls.obj.__new__ if issubclass(cls.obj, tuple) else cls.obj.__init__
    if isinstance(function, types.FunctionType):  # else that of `object`
        constructor = pdoc.doc.Function(cls.modulename, f"{cls.qualname}.__init__", function, cls.taken_from)
        cls.constructor = constructor.signature_without_self


def describe_variable(variable):
    """A variable's docstring stands below it, in the module that makes it."""
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE]:
        if vars(module).get(variable.name) is variable.default_value:
            texts = pdoc.doc_ast.walk_tree(module).var_docstrings
            variable.docstring = variable.docstring or inspect.cleandoc(texts.get(variable.name, ""))
    if isinstance(variable.default_value, type):
        variable.default_value_str = variable.default_value.__name__


def make_linkify(public, pages):
    """pdoc's filter that makes links of names in code, and finds names of other pages, too, as docstrings call them."""

    @jinja2.pass_context
    def linkify(context, code, namespace="", shorten=True):
        here = context["module"].modulename

        def link(match):
            call, member = match[1].removesuffix("()"), ""
            if call not in public.links:
                call, _, member = call.rpartition(".")
            if call not in public.links or (call[0].islower() and "." not in call):  # arguments are called such, too
                return match[0]
            module, name = public.links[call]
            anchor = f"{name}.{member}".strip(".")
            if anchor and pages[module].get(anchor) is None:
                return match[0]
            path = pdoc.render_helpers.relative_link(here, module)
            return f'<code><a href="{path}{"#" + anchor if anchor else ""}">{match[1]}</a></code>'

        linked = pdoc.render_helpers.linkify(context, code, namespace, shorten)
        return Markup(re.sub(r"<code>([A-Za-z_][\w.]*(?:\(\))?)</code>", link, linked))

    return linkify


def render(modules):
    """The pages, by their paths."""
    public = Public(modules)
    pages = {name: pdoc.doc.Module.from_name(name) for name in modules}
    for page in pages.values():
        describe(page, public)
    for extension in ("header-ids", "toc"):  # headings are those of sections: they need no names
        pdoc.render_helpers.markdown_extensions.pop(extension, None)
    pdoc.render.env.filters["linkify"] = make_linkify(public, pages)
    pdoc.render.configure(
        docformat="markdown",
        include_undocumented=False,
        show_source=False,
        template_directory=FOLDER / "templates",
        footer_text=f"{PACKAGE} {modules[PACKAGE].__version__}",
    )
    written = {f"{name.replace('.', '/')}.html": pdoc.render.html_module(page, pages) for name, page in pages.items()}
    written["index.html"] = pdoc.render.html_index(pages)
    written["search.js"] = pdoc.render.search_index({name: page for name, page in pages.items() if name != PACKAGE})
    return written


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER / "api", help="folder of the pages; default: docs/api")
    out = parser.parse_args().out
    with without_notes_on_the_machine():
        modules = public_modules()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = render(modules)
    for path, text in written.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text(text, encoding="utf-8")
    print(f"{len(written)} files, {sum(map(len, written.values())) / 1e6:.1f} MB: {out / 'index.html'}")


if __name__ == "__main__":
    main()
