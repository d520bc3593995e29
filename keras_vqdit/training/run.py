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
        self.steps_to_skip = 0

    def begin(self, x, y, shuffled):
        self.x, self.y, self.shuffled = x, y, shuffled
        self.watch, self.steps_to_skip = Watch(self.model), 0

    # === Steps ===

    def around(self, function):
        """A train function that minds skipped steps, and passes over those that were trained before a restart."""

        def train(*arguments):  # `(iterator)`, or on JAX `(state, iterator)`
            if self.steps_to_skip > 0:
                return self._pass_over(*arguments)
            result = function(*arguments)
            counts = self.model.skips.variables
            if BACKEND == "tensorflow":
                self.watch.look(local_values(counts))
            elif BACKEND == "jax":
                variables, values = self.model.metrics_variables, result[1][3]
                self.watch.look(
                    [value_of(count, variables, values) + 0 for count in counts]
                )  # a copy, for JAX reuses them
            return result

        return train

    def _pass_over(self, *arguments):
        for _ in range(min(self.model.steps_per_execution, self.steps_to_skip)):
            next(arguments[-1])
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
        return None if info is None else {"size": info.size, "batch_size": info.batch_size, "seed": info.seed}

    def warn_of_shuffled_arrays(self):
        if (
            self.shuffled
            and not self._is_dataset
            and any(hasattr(leaf, "shape") for leaf in keras.tree.flatten(self.x))
        ):
            logger.warning(
                "Keras shuffles arrays anew after a restart: for a training that goes on bit for bit give "
                "`kv.data.load(arrays)` to `fit`, or `shuffle=False`"
            )

    def build(self):
        """Build the model, its metrics and its optimizer from the shapes of the data, where they are not built yet."""
        model = self.model
        batch = self.x.element_spec if self._is_dataset else (self.x, self.y)
        metrics = getattr(model, "_compile_metrics", None)
        if not model.built or not (metrics is None or metrics.built):
            model._symbolic_build(data_batch=batch)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)


def value_of(variable, variables, values):
    """The value of one of many variables."""
    return next(value for v, value in zip(variables, values, strict=True) if v is variable)
