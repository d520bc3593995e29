"""What a layer may know of the replicas that train together, and how it learns from the examples of all of them."""

import contextlib
import threading

_state = threading.local()


@contextlib.contextmanager
def deferred_learning():
    """Within this block layers do not learn in `call` by themselves: they note what they saw.

    `DistributedModel` opens it around the compiled step of one replica, which can not talk to the others, brings together
    what was noted on all of them, and lets each layer learn from it, equally everywhere.

    Yields:
        List of the tuples `(layer, observations)` of `defer`, in the order of the calls.
    """
    previous, _state.notes = getattr(_state, "notes", None), []
    try:
        yield _state.notes
    finally:
        _state.notes = previous


def learning_is_deferred():
    """Whether the caller stands within `deferred_learning`."""
    return getattr(_state, "notes", None) is not None


def defer(layer, observations):
    """Note what a layer would learn from, if learning is deferred.

    Args:
        layer: it has a method `learn(**observations)` and, where it starts from its first data, `start(**observations)`.
        observations: dict of tensors whose first axis is that of the examples or vectors, and is joined over the replicas.
            Those whose names end in `weights` say what counts, and become 0 where a batch must teach nothing.

    Returns:
        Whether learning is deferred: if not, the layer learns at once.
    """
    if not learning_is_deferred():
        return False
    _state.notes.append((layer, observations))
    return True
