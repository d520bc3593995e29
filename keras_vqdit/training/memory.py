"""What callbacks remember from epoch to epoch, which a training that goes on needs as much as its weights."""

import keras
import numpy as np

REMEMBERED = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch", "best_weights"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
    keras.callbacks.ModelCheckpoint: ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
}


def remembered(callback):
    """The names of the attributes in which a callback remembers: those of Keras's own, and those that it names itself."""
    names = [name for cls, own in REMEMBERED.items() if isinstance(callback, cls) for name in own]
    return [*names, *getattr(callback, "remembered", ())]


def recall(callbacks):
    """What callbacks remember now.

    Args:
        callbacks: list of `keras.callbacks.Callback`.

    Returns:
        `(memory, arrays)`: a list of `[class name, {attribute: value}]` for JSON, and the list of arrays that it points into
        as `{"arrays": [first, last]}`, or as `{"array": index}`.

    Raises:
        TypeError: if an attribute is neither a number, a text, a truth value, None, an array nor a list of arrays.
    """
    memory, arrays = [], []
    for callback in callbacks:
        values = {}
        for name in remembered(callback):
            value = getattr(callback, name)
            if isinstance(value, list) and all(isinstance(one, np.ndarray) for one in value):
                arrays += value
                values[name] = {"arrays": [len(arrays) - len(value), len(arrays)]}
            elif value is None or isinstance(value, (bool, int, float, str)):
                values[name] = value
            elif hasattr(value, "shape"):
                value = keras.ops.convert_to_numpy(value)
                arrays.append(value)
                values[name] = {"array": len(arrays) - 1}
            else:
                raise TypeError(
                    f"What {type(callback).__name__} remembers must be numbers, texts, arrays or lists of arrays. "
                    f"Received: {name}={value!r}"
                )
        if values:
            memory.append([type(callback).__name__, values])
    return memory, arrays


def remind(callbacks, memory, arrays):
    """Give callbacks what those of the same class, in the same order, remembered. Others begin anew."""
    memory = [tuple(entry) for entry in memory]
    for callback in callbacks:
        entry = next((entry for entry in memory if entry[0] == type(callback).__name__), None)
        if entry is None:
            continue
        memory.remove(entry)
        known = remembered(callback)
        for name, value in entry[1].items():
            if name not in known:
                continue
            if isinstance(value, dict):
                value = arrays[slice(*value["arrays"])] if "arrays" in value else arrays[value["array"]]
            setattr(callback, name, value)
