"""`Checkpoint`: training that was ended at any moment goes on as if nothing had happened."""

import contextlib
import json
import logging
import re
import zipfile
from pathlib import Path

import keras
import numpy as np

from keras_vqdit.checks import positive_integer
from keras_vqdit.saving import atomic_path, check_writable
from keras_vqdit.training.replica_steps import to_numpy

VERSION = 1
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
    the same order in every epoch. Keras draws the order of arrays anew: give `kv.data.load(arrays)`, or `shuffle=False`. What
    other callbacks remember is not saved.

    Args:
        folder: where the checkpoints are: one for each training. It is made.
        every: save after so many steps, too. Defaults to `None`, at the end of each epoch alone.
        keep: how many checkpoints are kept. Defaults to 2.

    Raises:
        ValueError: when `fit` begins, if `folder` holds the checkpoints of another model or of other data, or none that is whole.
        OSError: when `fit` begins, if `folder` can not be written to.

    Example:

    ```python
    train, test = kv.data.load("mnist_5k", batch_size=64)
    tokenizer = kv.VQVAE.from_size("digits")
    tokenizer.compile("adam")
    tokenizer.fit(train, epochs=12, callbacks=[kv.training.Checkpoint("checkpoints/tokenizer", every=100)])
    ```
    """

    def __init__(self, folder, *, every=None, keep=2):
        super().__init__()
        self.folder = Path(folder).expanduser()
        self.every = None if every is None else positive_integer("every", every)
        self.keep = positive_integer("keep", keep)
        self.restored = None  # what was read, until the first epoch begins
        self.epoch = self.begin = 0  # the epoch, and the last step in it that was saved or trained before
        self.history = {}

    # === Going on ===

    def on_train_begin(self, logs=None):
        if not hasattr(self.model, "_run"):
            raise ValueError(
                f"`Checkpoint` needs a model of this package, a `DistributedModel`. Received: {type(self.model).__name__}"
            )
        if self.is_writer:
            check_writable(self.folder / "checkpoint")
            for left in self.folder.glob(".epoch-*.npz"):  # of a process that was killed while it wrote
                left.unlink(missing_ok=True)
        self.model._run.warn_of_shuffled_arrays()
        found = self._read_newest()
        self._check_workers_agree(found)
        if found is None:
            return
        meta, arrays = found
        self._check_data(meta)
        with self._scope:
            self.model._run.build()
        self._check_variables(meta)
        self._assign(arrays)
        self.model._initial_epoch = meta["epoch"]
        self.history = meta["history"]
        self.model.history.history.update({key: list(values) for key, values in meta["history"].items()})
        self.restored = found
        logger.info("Training goes on from %s", self._name(meta["epoch"], meta["step"]))

    def on_epoch_begin(self, epoch, logs=None):
        run = self.model._run
        run.set_epoch(epoch)
        self.epoch, self.begin = epoch, 0
        if self.restored is not None:
            meta, arrays = self.restored
            self.restored = None
            self.model.history.epoch = list(meta["epochs"])
            if meta["step"]:
                self._assign(arrays)  # again, for Keras has reset the metrics since
            self.begin = meta["step"]
            run.steps_to_skip = meta["step"]

    def _read_newest(self):
        """`(meta, arrays)` of the newest file that is whole, or None."""
        damaged = []
        for path in sorted(self.folder.glob("epoch-*.npz"), reverse=True):
            try:
                found = _read(path)
            except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
                damaged.append(path)
                logger.warning("%s is damaged, and left out: %s", path, error)
                continue
            if found[0].get("version") != VERSION:
                raise ValueError(f"{path} must be of version {VERSION}. Received: version {found[0].get('version')}")
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

    def _assign(self, arrays):
        with self._scope:
            for variable, array in zip(self._variables(), arrays, strict=True):
                variable.assign(array)

    # === Saving ===

    def on_train_batch_end(self, batch, logs=None):
        # Steps before `begin` were trained before the restart.
        if self.every and batch + 1 > self.begin and (batch + 1) // self.every > self.begin // self.every:
            self.begin = batch + 1
            self._save(self.epoch, batch + 1)

    def on_epoch_end(self, epoch, logs=None):
        if self.model._run.steps_to_skip:
            raise ValueError(
                f"The data must have as many batches as when the checkpoint in {self.folder} was written. Received: "
                f"{self.model._run.steps_to_skip} batches less than had been trained on"
            )
        for key, value in (logs or {}).items():
            self.history.setdefault(key, []).append(None if value is None else float(value))
        self._save(epoch + 1, 0)

    def _save(self, epoch, step):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        variables = self._variables()
        meta = {
            "version": VERSION,
            "epoch": epoch,
            "step": step,
            "history": self.history,
            "epochs": list(range(epoch)),
            "data": self.model._run.describe_data(),
            "variables": [_describe(variable) for variable in variables],
        }
        arrays = [to_numpy(variable) for variable in variables]
        if self.is_writer:
            with atomic_path(self.folder / self._name(epoch, step)) as temporary:
                _write(temporary, meta, arrays)
            for old in sorted(self.folder.glob("epoch-*.npz"))[: -self.keep]:
                old.unlink(missing_ok=True)

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
        return self._strategy is None or self._strategy.extended.should_checkpoint

    def _check_workers_agree(self, found):
        if self._strategy is None:
            return
        mine = -1.0 if found is None else found[0]["epoch"] * 1e6 + found[0]["step"]
        mean = float(self._strategy.reduce("MEAN", np.float32(mine), axis=None))
        if abs(mean - mine) > 0.5:
            raise ValueError(
                f"All workers must find the same checkpoints: `folder` must be shared. Received: folder={str(self.folder)!r}, "
                "where this worker finds another one than the others"
            )


def _describe(variable):
    name = re.sub(r"_\d+", "", variable.name)  # without the numbers that Keras gives out in order
    return name, tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype)


def _write(path, meta, arrays):
    names = {f"variable_{i}": array for i, array in enumerate(arrays)}
    for name, array in names.items():
        if array.dtype.name == "bfloat16":  # which NumPy's files do not know
            names[name] = array.view("uint16")
    text = np.frombuffer(json.dumps(meta).encode(), "uint8")
    with open(path, "wb") as file:
        np.savez(file, meta=text, **names)


def _read(path):
    with np.load(path, allow_pickle=False) as file:
        meta = json.loads(file["meta"].tobytes())
        arrays = []
        for i, (_, _, dtype) in enumerate(meta["variables"]):
            array = file[f"variable_{i}"]
            arrays.append(array.view(keras.backend.standardize_dtype(dtype)) if dtype == "bfloat16" else array)
    return meta, arrays
