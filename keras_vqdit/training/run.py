"""What belongs to a run of `fit`: its data, the place in them, and what happens around each step."""

import logging

import keras

from keras_vqdit.training.guard import Watch
from keras_vqdit.training.replica_steps import ReplicaSteps, local_values

BACKEND = keras.backend.backend()
logger = logging.getLogger("keras_vqdit")


class Run:
    """The compiled steps of a model and its present run of `fit`; plain, so that Keras tracks nothing of it.

    Args:
        model: `DistributedModel`.
    """

    def __init__(self, model):
        self.model = model
        self.replicas = ReplicaSteps(model)
        self.watch = Watch(model)
        self.x = self.y = None  # what `fit` was given
        self.shuffled = False
        self.callbacks = []
        self.steps_to_skip = 0

    def begin(self, x, y, shuffle, callbacks):
        """Take what `fit` was given.

        Returns:
            The callbacks, those that must see what all others did behind them.
        """
        self.x, self.y, self.shuffled = x, y, shuffle
        self.watch, self.steps_to_skip = Watch(self.model), 0
        ready = isinstance(callbacks, keras.callbacks.CallbackList)
        found = callbacks.callbacks if ready else keras.tree.flatten([] if callbacks is None else callbacks)
        self.callbacks = sorted(found, key=lambda callback: getattr(callback, "comes_last", False))
        if not ready:
            return self.callbacks
        callbacks.callbacks = self.callbacks
        return callbacks

    def end(self):
        """Keep nothing of it alive."""
        self.x = self.y = None
        self.callbacks = []

    # === Steps ===

    def around(self, function):
        """A train function that minds skipped steps, and passes over those that were trained before a restart."""
        if BACKEND not in ("tensorflow", "jax"):
            return function

        def train(*arguments):  # `(iterator)`, or on JAX `(state, iterator)`
            if self.steps_to_skip > 0:
                return self._pass_over(*arguments)
            if BACKEND == "jax":
                values = [value_of(count, self.model.metrics_variables, arguments[0][3]) + 0 for count in self._counts]
                self.watch.look(values)  # copies, before the step uses up its arguments
                return function(*arguments)
            result = function(*arguments)
            self.watch.look(local_values(self._counts))
            return result

        return train

    @property
    def _counts(self):
        return self.model.skips.variables

    def _pass_over(self, *arguments):
        steps = min(self.model.steps_per_execution, self.steps_to_skip)
        for step in range(steps):
            if next(arguments[-1], None) is None:
                if step:  # the last call of an epoch may have fewer steps than others
                    self.steps_to_skip = 0
                raise StopIteration
            self.steps_to_skip -= 1
        if BACKEND != "jax":
            return self.model.get_metrics_result()
        state = arguments[0]
        with keras.StatelessScope(list(zip(self.model.metrics_variables, state[3], strict=True))):
            return self.model.get_metrics_result(), state

    # === Data ===

    @property
    def _is_dataset(self):
        return hasattr(self.x, "element_spec")

    def set_epoch(self, epoch):
        """Let a data set whose order can be set have that of an epoch."""
        if hasattr(self.x, "set_epoch"):
            self.x.set_epoch(epoch)

    def describe_data(self):
        """What must be as before for training to go on, as far as it is known."""
        info = getattr(self.x, "info", None)
        if info is None:
            return None
        shapes = {name: list(shape) for name, shape in info.shapes.items()}
        return {
            "name": info.name,
            "size": info.size,
            "shapes": shapes,
            "batch_size": info.batch_size,
            "seed": info.seed,
        }

    def warn_of_data(self, steps):
        """Log where data can not be those that they would have been without a restart.

        Args:
            steps: of an epoch, None if unknown.
        """
        arrays = not self._is_dataset and any(hasattr(leaf, "shape") for leaf in keras.tree.flatten(self.x))
        if self.shuffled and (arrays or isinstance(self.x, keras.utils.PyDataset)):
            logger.warning(
                "Keras shuffles arrays anew after a restart: for a training that goes on bit for bit give "
                "`kv.data.load(arrays)` to `fit`, or `shuffle=False`"
            )
        batches = int(self.x.cardinality()) if callable(getattr(self.x, "cardinality", None)) else 0
        if steps and batches > steps:
            logger.warning(
                "With steps_per_epoch=%d of %d batches an epoch reads on where the one before ended; after a restart the data "
                "begin anew with the epoch",
                steps, batches,
            )  # fmt: skip

    def _tells_shapes(self):
        """Whether the data tell their shapes before they are read."""
        leaves = [leaf for leaf in keras.tree.flatten((self.x, self.y)) if leaf is not None]
        known = self._is_dataset or isinstance(self.x, keras.utils.PyDataset)
        return known or all(hasattr(leaf, "shape") for leaf in leaves)

    def check_can_go_on(self):
        """Raise a ValueError where a training could not go on from its checkpoints."""
        metrics = getattr(self.model, "_compile_metrics", None)
        unknown = [] if self.model.built else ["the model is not built"]
        unknown += ["it is compiled with metrics"] if metrics is not None and not metrics.built else []
        if unknown and not self._tells_shapes():
            raise ValueError(
                "With `Checkpoint` the data must tell their shapes before they are read, as a `tf.data.Dataset`, a `PyDataset` "
                "or arrays do; a generator will do for a built model (call it on a batch) without metrics. "
                f"Received: data of type {type(self.x).__name__}, and {' and '.join(unknown)}"
            )

    def build(self):
        """Build the model, its metrics and its optimizer from the shapes of the data, where they are not built yet."""
        if not self._tells_shapes():
            self.model.optimizer.build(self.model.trainable_variables)
            return
        batch = (self.x, self.y)
        if self._is_dataset:
            batch = self.x.element_spec
        elif isinstance(self.x, keras.utils.PyDataset):
            batch = self.x[0]
        self.model._symbolic_build(data_batch=batch)


def value_of(variable, variables, values):
    """The value of one of many variables."""
    return next(value for v, value in zip(variables, values, strict=True) if v is variable)
