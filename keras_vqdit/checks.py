"""Checks of arguments that every room makes, with one wording."""

import numbers


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
