"""The examples in the docstrings run, and give what they show."""

import doctest
import importlib
import pkgutil

import keras
import numpy as np
import pytest

import keras_vqdit

MODULES = [
    m.name for m in pkgutil.walk_packages(keras_vqdit.__path__, "keras_vqdit.") if not m.name.endswith("__main__")
]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    names = {"np": np, "keras": keras, "kv": keras_vqdit, **vars(keras_vqdit), **vars(module)}
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    report = []
    for example in doctest.DocTestFinder().find(module, globs=names):
        runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)


def test_there_are_examples():
    count = sum(
        len(example.examples)
        for name in MODULES
        for example in doctest.DocTestFinder().find(importlib.import_module(name))
    )
    assert count > 50
