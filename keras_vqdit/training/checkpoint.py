"""`Checkpoint`: training that was ended at any moment goes on as if nothing had happened."""

import contextlib
import json
import logging
import os
import re
from pathlib import Path

import keras
import numpy as np

from keras_vqdit.checks import positive_integer
from keras_vqdit.saving import atomic_path, check_writable
from keras_vqdit.saving.strict import parse_json, read_npz, short
from keras_vqdit.training.guard import DATA
from keras_vqdit.training.memory import recall, remind
from keras_vqdit.training.replica_steps import to_numpy
from keras_vqdit.training.strategies import is_writer

VERSION = 3
KEYS = {
    "history": dict,
    "epochs": list,
    "callbacks": list,
    "data": (dict, list, str, type(None)),
    "model": dict,
    "optimizer": dict,
    "variables": list,
    "memory": list,
}
# Names that Keras numbers in order, and what an object is called where.
UNIMPORTANT = (
    "name",
    "shared_object_id",
    "config_version",
    "input_layers",
    "output_layers",
    "inbound_nodes",
    "build_config",
    "compile_config",
)
NEVER = 10**9  # an epoch that no training comes to
logger = logging.getLogger("keras_vqdit")


class Checkpoint(keras.callbacks.Callback):
    """Save all that training needs to go on, while it trains, and go on from there when it is started again.

    A checkpoint holds the weights, the optimizer, moving averages, codebooks, the states of random numbers, metrics, the history,
    and the place in the data: epoch and step. Start the same program again after whatever ended it, and `fit` goes on from
    the last checkpoint, bit for bit as if it had never stopped. (On several devices to rounding.) With more `epochs` than before
    it trains on.

    Files are written to a temporary name and renamed when they are whole, so there is never half a checkpoint. On several
    workers the first one writes, and all read: `folder` must be shared.

    The order of the data goes on too for data sets of `kv.data.load` and `kv.data.encode_latents`, and for others that come in
    the same order in every epoch. Keras draws the order of arrays anew: give `kv.data.load(arrays)`, or `shuffle=False`.

    What `EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint` remember goes on as well, and what a callback of your own
    keeps in the attributes that it names: `remembered = ("count", "best")`. It does not matter where `Checkpoint` stands among
    the callbacks: it is called after all others. So in their `on_train_begin` the model is not restored yet; from their first
    `on_epoch_begin` on it is. A model that is not finite is not saved.

    With `steps_per_epoch` smaller than the data Keras reads on where the epoch before ended, which a restart can not: the data
    begin anew with the epoch.

    Args:
        folder: where the checkpoints are: one for each training. It is made.
        every: save after so many steps, too. Defaults to `None`, at the end of each epoch alone.
        keep: how many checkpoints are kept. Defaults to 2.

    Raises:
        ValueError: when `fit` begins, if `folder` holds the checkpoints of another model, of another tokenizer or of other data,
            or none that is whole; if the data do not tell their shapes, as a generator, and the model needs them.
        OSError: when `fit` begins, if `folder` can not be written to.
        TypeError: if `folder` is no path; when `fit` begins, if what a callback remembers can not be saved.

    Example:

    ```python
    train, test = kv.data.load("mnist_5k", batch_size=64)
    tokenizer = kv.VQVAE.from_size("digits")
    tokenizer.compile("adam")
    tokenizer.fit(train, epochs=12, callbacks=[kv.training.Checkpoint("checkpoints/tokenizer", every=100)])
    ```
    """

    comes_last = True  # of all callbacks of `fit`, for it saves what they did

    def __init__(self, folder, *, every=None, keep=2):
        super().__init__()
        if not isinstance(folder, (str, os.PathLike)) or not str(folder):
            raise TypeError(f"`folder` must be a path. Received: folder={folder!r}")
        self.folder = Path(folder).expanduser()
        self.every = None if every is None else positive_integer("every", every)
        self.keep = positive_integer("keep", keep)
        self.restored = None  # what was read, until the first epoch begins
        self.epoch = self.saved_step = 0  # the epoch, and the last step in it that was saved or trained before
        self.trained = False  # there was a step in this epoch
        self.ended_early = False  # a callback stopped the training in the middle of an epoch
        self.history, self.epochs = {}, []
        self.optimizer = {}  # its settings

    # === Going on ===

    def on_train_begin(self, logs=None):
        if not hasattr(self.model, "_run"):
            raise ValueError(
                f"`Checkpoint` needs a model of this package, a `DistributedModel`. Received: {type(self.model).__name__}"
            )
        run = self.model._run
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"`folder` must be a folder. Received: folder={str(self.folder)!r}, a file")
        run.check_can_go_on()
        if self.is_writer:
            check_writable(self.folder / "checkpoint")
            for left in self.folder.glob(".epoch-*.npz"):  # of a process that was killed while it wrote
                left.unlink(missing_ok=True)
        run.warn_of_data(self.params.get("steps"))
        recall(run.callbacks)  # an error shall come now, not after an epoch
        found = self._read_newest()
        self._check_workers_agree(found)
        self.restored, self.ended_early = None, False
        self.optimizer = _settings(self.model.optimizer)  # as it is before training changes its learning rate
        self.history, self.epochs = {}, []
        if found is None:
            return
        meta, arrays, memory = found
        self._check_data(meta)
        self._check_step(meta["step"])
        with self._scope:
            run.build()
        self._check_variables(meta)
        self._check_model(meta, arrays)
        self._assign(arrays)
        remind(run.callbacks, meta["callbacks"], memory)
        self.history, self.epochs = meta["history"], meta["epochs"]
        history = getattr(self.model, "history", None)  # a `CallbackList` of the user may have none
        if history is not None:
            history.epoch = list(self.epochs)
            history.history.update({key: list(values) for key, values in self.history.items()})
        self.model._initial_epoch = meta["epoch"]
        stopper = next((callback for callback in run.callbacks if _stays_stopped(callback)), None)
        if stopper is not None:
            self.model._initial_epoch = NEVER
        if stopper is not None or meta["epoch"] >= self.params["epochs"]:
            why = "EarlyStopping stopped it" if stopper is not None else f"epochs={self.params['epochs']}"
            logger.warning(
                "Nothing is left to train: the model is as in the checkpoint in %s, at the end of epoch %d (%s)",
                self.folder, meta["epoch"], why,
            )  # fmt: skip
            return
        self.restored = meta, arrays
        logger.warning("Training goes on from %s", self._name(meta["epoch"], meta["step"]))

    def on_epoch_begin(self, epoch, logs=None):
        run = self.model._run
        run.set_epoch(epoch)
        self.epoch, self.saved_step, self.trained = epoch, 0, False
        if self.restored is not None:
            meta, arrays = self.restored
            self.restored, self.trained = None, True
            if getattr(self.model, "history", None) is not None:
                self.model.history.epoch = list(self.epochs)
            if meta["step"]:
                self._assign(arrays)  # again, for Keras has reset metrics, and callbacks have set learning rates
            self.saved_step = run.steps_to_skip = meta["step"]

    def _read_newest(self):
        """`(meta, arrays, memory)` of the newest file that is whole, or None."""
        damaged = []
        for path in sorted(self.folder.glob("epoch-*.npz"), reverse=True):
            try:
                found = _read(path)
            except (ValueError, OSError) as error:
                damaged.append(path)
                logger.warning("A checkpoint is damaged, and left out: %s", error)
                continue
            if found[0]["version"] != VERSION:
                raise ValueError(f"{path} must be of version {VERSION}. Received: version {found[0]['version']}")
            if self.is_writer:
                for bad in damaged:  # or it would count as the newest, and whole ones would make way for it
                    bad.replace(bad.with_name(f"damaged-{bad.name}"))
            return found
        if damaged:
            raise ValueError(f"None of the {len(damaged)} checkpoints in {self.folder} is whole: give another `folder`")
        return None

    def _check_data(self, meta):
        expected, received = meta["data"], self.model._run.describe_data()
        if expected and received and expected != received:
            raise ValueError(
                f"The checkpoints in {self.folder} are of a training on other data, or in other batches: {expected}. "
                f"Received: {received}. Give another `folder` to start anew"
            )

    def _check_step(self, step):
        together, steps = self.model.steps_per_execution, self.params.get("steps")
        if step % together and step != steps:
            raise ValueError(
                f"The checkpoint in {self.folder} was written after step {step} of an epoch: `steps_per_execution` must divide "
                f"that to go on. Received: steps_per_execution={together}"
            )

    def _check_variables(self, meta):
        expected = [(name, tuple(shape), dtype) for name, shape, dtype in meta["variables"]]
        received = [_describe(variable) for variable in self._variables()]
        for old, new in zip(expected, received, strict=False):
            if old != new:
                raise ValueError(
                    f"The checkpoints in {self.folder} are of another model. Expected: {old}. Received: {new}"
                )
        if len(expected) != len(received):
            raise ValueError(
                f"The checkpoints in {self.folder} are of another model. Expected: {len(expected)} variables. "
                f"Received: {len(received)}"
            )

    def _check_model(self, meta, arrays):
        """What is not among the shapes of the variables: another process, another tokenizer, another optimizer."""
        old, new = meta["model"], _settings(self.model)
        for key in sorted(old.keys() & new.keys()):
            if old[key] != new[key]:
                raise ValueError(
                    f"The checkpoints in {self.folder} are of another model. Expected: {key}={old[key]}. Received: {new[key]}"
                )
        values = dict(zip(map(id, self._variables()), arrays, strict=True))
        for variable in self.model.fixed_variables:
            if not np.array_equal(to_numpy(variable), values[id(variable)]):
                raise ValueError(
                    f"The checkpoints in {self.folder} are of a model with another tokenizer. Received: other values in "
                    f"{variable.path}"
                )
        old, new = meta["optimizer"], self.optimizer
        changed = [f"{key}: {old.get(key)} to {new.get(key)}" for key in sorted(new) if old.get(key) != new.get(key)]
        if changed:
            logger.warning(
                "The optimizer was changed (%s) since the checkpoint was written. Its state goes on, and with it a learning rate "
                "that is a number; to change that, change it after `fit` began, as `ReduceLROnPlateau` does",
                "; ".join(changed),
            )

    def _assign(self, arrays):
        with self._scope:
            for variable, array in zip(self._variables(), arrays, strict=True):
                variable.assign(array)

    # === Saving ===

    def on_train_batch_end(self, batch, logs=None):
        steps = self.params.get("steps")
        step = batch + 1 if steps is None else min(batch + 1, steps)  # Keras counts full calls of several steps
        if step <= self.saved_step:  # trained before the restart
            return
        self.trained = True
        self.ended_early = bool(self.model.stop_training) and step != steps
        if self.ended_early or (self.every and step // self.every > self.saved_step // self.every):
            self.saved_step = step
            self._save(self.epoch, step)

    def on_epoch_end(self, epoch, logs=None):
        if self.ended_early or not self.trained:
            return
        if self.model._run.steps_to_skip:
            raise ValueError(
                f"The data must have as many batches as when the checkpoint in {self.folder} was written. Received: "
                f"{self.model._run.steps_to_skip} batches less than had been trained on"
            )
        for key, value in (logs or {}).items():
            self.history.setdefault(key, []).append(_plain(value))
        self.epochs.append(epoch)
        self._save(epoch + 1, 0)

    def on_train_end(self, logs=None):
        history = getattr(self.model, "history", None)
        if history is not None and not history.epoch:  # nothing was left to train
            history.epoch = list(self.epochs)

    def _save(self, epoch, step):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        if self._model_may_be_broken():
            logger.warning(
                "No checkpoint was written: the last steps were skipped, and the file before is the better one"
            )
            return
        variables = self._variables()
        arrays = [to_numpy(variable) for variable in variables]
        weights = {id(variable) for variable in self.model.weights}
        for variable, array in zip(variables, arrays, strict=True):
            if id(variable) in weights and not np.all(np.isfinite(array)):
                logger.warning("No checkpoint was written: %s is not finite", variable.path)
                return
        remembered, memory = recall(self.model._run.callbacks)
        meta = {
            "version": VERSION,
            "epoch": epoch,
            "step": step,
            "history": self.history,
            "epochs": self.epochs,
            "callbacks": remembered,
            "data": self.model._run.describe_data(),
            "model": _settings(self.model),
            "optimizer": self.optimizer,
            "variables": [_describe(variable) for variable in variables],
        }
        if self.is_writer:
            path = self.folder / self._name(epoch, step)
            with atomic_path(path) as temporary:
                _write(temporary, meta, arrays, memory)
            for old in sorted(set(self.folder.glob("epoch-*.npz")) - {path})[: 1 - self.keep or None]:
                old.unlink(missing_ok=True)

    def _model_may_be_broken(self):
        """Whether steps are being skipped, and neither the data nor the search for a scale of the loss are the reason."""
        skips = self.model.skips
        in_a_row, cause = int(to_numpy(skips.in_a_row)), int(to_numpy(skips.cause))
        scaled = isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer)
        return in_a_row > 0 and cause != DATA and not (scaled and cause >= 0)

    def _name(self, epoch, step):
        return f"epoch-{epoch:06d}-step-{step:09d}.npz"

    def _variables(self):
        model = self.model
        lists = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
        return list({id(variable): variable for variables in lists for variable in variables}.values())

    # === Several workers ===

    @property
    def _strategy(self):
        return getattr(self.model, "_distribute_strategy", None)

    @property
    def _scope(self):
        return self._strategy.scope() if self._strategy is not None else contextlib.nullcontext()

    @property
    def is_writer(self):
        """Whether this process writes the checkpoints."""
        return is_writer(self._strategy)

    def _check_workers_agree(self, found):
        if self._strategy is None:
            return
        import tensorflow as tf

        if not isinstance(self._strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return
        mine = np.array([-1, -1] if found is None else [found[0]["epoch"], found[0]["step"]], "int64")
        total = self._strategy.reduce("SUM", tf.constant(mine), axis=None).numpy()
        if not np.array_equal(total, mine * self._strategy.num_replicas_in_sync):
            raise ValueError(
                f"All workers must find the same checkpoints: `folder` must be shared. Received: folder={str(self.folder)!r}, "
                "where this worker finds another one than the others"
            )


def _stays_stopped(callback):
    """Whether a callback ended the training that goes on, and would end it now."""
    early = isinstance(callback, keras.callbacks.EarlyStopping)
    return early and callback.stopped_epoch > 0 and callback.wait >= callback.patience


def _describe(variable):
    name = re.sub(r"_\d+", "", variable.name)  # without the numbers that Keras gives out in order
    return name, tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype)


def _plain(value):
    return value if value is None or isinstance(value, str) else np.asarray(value).tolist()


def _write(path, meta, arrays, memory):
    kinds = {"variable": arrays, "memory": memory}
    meta["memory"] = [keras.backend.standardize_dtype(array.dtype) for array in memory]
    named = {f"{kind}_{i}": array for kind, arrays in kinds.items() for i, array in enumerate(arrays)}
    for name, array in named.items():
        if array.dtype.name == "bfloat16":  # which NumPy's files do not know
            named[name] = array.view("uint16")
    text = np.frombuffer(json.dumps(meta).encode(), "uint8")
    with open(path, "wb") as file:
        np.savez(file, meta=text, **named)


def _read(path):
    """`(meta, arrays, memory)`; of a file of another version the first alone.

    Raises:
        ValueError: if the file is damaged.
    """

    def array(name, dtype):
        return found[name].view(dtype) if dtype == "bfloat16" else found[name]

    found = read_npz(path)
    try:
        meta = parse_json(found["meta"].tobytes(), path, finite=False)  # a loss of the past may be NaN
        if type(meta["version"]) is not int or meta["version"] != VERSION:
            return meta, [], []
        places = meta["epoch"], meta["step"]
        if not all(type(place) is int and 0 <= place < 2**31 for place in places) or not KEYS.keys() <= meta.keys():
            raise ValueError(f"received keys {short(sorted(meta))}, and the place {short(places)}")
        wrong = [key for key, kind in KEYS.items() if not isinstance(meta[key], kind)]
        if wrong or not all(isinstance(values, list) for values in meta["history"].values()):
            raise ValueError(f"received another type of {wrong or 'values in the history'}")
        arrays = [array(f"variable_{i}", dtype) for i, (_, _, dtype) in enumerate(meta["variables"])]
        memory = [array(f"memory_{i}", dtype) for i, dtype in enumerate(meta["memory"])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged, or no checkpoint: {error}") from None
    for one, (_, shape, dtype) in zip(arrays, meta["variables"], strict=True):
        if list(one.shape) != shape or keras.backend.standardize_dtype(one.dtype) != dtype:
            raise ValueError(
                f"{path} is damaged: it must hold {dtype} {shape}. Received: {one.dtype} {list(one.shape)}"
            )
    return meta, arrays, memory


def _settings(part):
    """The configuration of a model or an optimizer as a flat dict for JSON, without names; empty if it tells none."""
    try:
        config = {"class": type(part).__name__, **part.get_config()}
    except NotImplementedError:
        return {}
    flat, todo = {}, [("", config)]
    while todo:
        prefix, value = todo.pop()
        if isinstance(value, dict):
            left_out = (
                () if prefix.endswith("dtype.config") else UNIMPORTANT
            )  # the name of a dtype policy is all it has
            todo += [(f"{prefix}.{key}" if prefix else key, one) for key, one in value.items() if key not in left_out]
        elif value is None or isinstance(value, (bool, int, str)):
            flat[prefix] = value
        elif isinstance(value, float):
            flat[prefix] = repr(value)
        elif isinstance(value, (list, tuple)):
            todo += [(f"{prefix}.{i}", one) for i, one in enumerate(value)]
    return flat
