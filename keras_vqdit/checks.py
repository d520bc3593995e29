"""Checks of arguments that every room makes, with one wording."""

import math
import numbers

import keras
import numpy as np


def is_positive_integer(value):
    """Whether it is an integer of Python or NumPy from 1 on; a bool is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= 1


def positive_integer(name, value):
    """The value as an `int`.

    Raises:
        ValueError: if it is not a positive integer.
    """
    if not is_positive_integer(value):
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return int(value)


def integer(name, value):
    """The value as an `int`.

    Raises:
        ValueError: if it is not an integer.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"`{name}` must be an integer. Received: {name}={value!r}")
    return int(value)


def number(name, value, low=-math.inf, high=math.inf, *, above=None, below=None):
    """The value as a `float`.

    Args:
        name: the argument's name.
        value: what was given; a scalar of Python, NumPy or the backend.
        low, high: range, both included.
        above, below: range, both excluded.

    Raises:
        ValueError: if it is not a finite number in the range.
    """
    wanted = [f"at least {low:g}"] if low > -math.inf else [f"more than {above:g}"] if above is not None else []
    wanted += [f"at most {high:g}"] if high < math.inf else [f"less than {below:g}"] if below is not None else []
    try:
        scalar = math.nan if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError, OverflowError):
        scalar = math.nan
    inside = low <= scalar <= high and (above is None or scalar > above) and (below is None or scalar < below)
    if not (inside and math.isfinite(scalar)):
        wanted = f", {' and '.join(wanted)}" if wanted else ""
        raise ValueError(f"`{name}` must be a finite number{wanted}. Received: {name}={value!r}")
    return scalar


def fits(shape, expected):
    """Whether a shape is the expected one, as far as both are known."""
    return len(shape) == len(expected) and all(a == b or a is None or b is None for a, b in zip(shape, expected))


def known_values(tensor):
    """The values of an array or an eager tensor as NumPy; `None` of a tensor that is being traced."""
    if isinstance(tensor, keras.KerasTensor):
        return None
    try:
        return np.asarray(tensor)
    except (NotImplementedError, TypeError):  # TensorFlow's, and JAX's, answer for a tensor without a value
        return None


def check_range(name, x):
    """Raise a ValueError where an array of floats is out of [-1, 1], such as pixels up to 255. What is not finite passes."""
    x = x[np.isfinite(x)] if x.dtype.kind == "f" else x[:0]
    if x.size and max(-x.min(), x.max()) > 1.01:  # what codecs overshoot is no mistake
        raise ValueError(f'"{name}" must be in [-1, 1]. Received: values from {x.min():.3g} to {x.max():.3g}')


def check_times(t):
    """Raise a ValueError for known times that are not in [0, 1], such as the integer steps of other packages."""
    values = known_values(t)
    if values is not None and not np.all((values >= 0) & (values <= 1)):
        raise ValueError(
            f"Times `t` must be in [0, 1], where 0 is data. Received: t from {values.min()} to {values.max()}"
        )


def one_each(name, value, rank):
    """A tuple of one positive integer a spatial dimension, from an integer or a sequence.

    Raises:
        ValueError: if there are not `rank` of them, or one is not a positive integer.
    """
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * rank
    if len(values) != rank or not all(map(is_positive_integer, values)):
        raise ValueError(
            f"`{name}` must be a positive integer or {rank} of them, one a spatial dimension. Received: {name}={value!r}"
        )
    return tuple(map(int, values))


def one_of(name, value, choices):
    """The value.

    Raises:
        ValueError: if it is none of the choices.
    """
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}. Received: {name}={value!r}")
    return value
