"""Compilation of plain functions."""

import logging

import numpy as np
from keras import ops

from keras_vqdit.training import compile_function


def test_other_shapes_are_traced_anew_without_a_warning(caplog):
    """TensorFlow warns at the fifth tracing within a few calls, as if it was a mistake to draw batches of several sizes."""
    program = compile_function(lambda x: ops.sum(x * x))
    logger = logging.getLogger("tensorflow")
    logger.addHandler(caplog.handler)
    try:
        for size in range(1, 13):
            assert float(program(np.full(size, 2.0, "float32"))) == 4.0 * size
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if "retracing" in record.getMessage()] == []
