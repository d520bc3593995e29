"""`DistributedModel`: a `keras.Model` whose `fit` works under `tf.distribute`, compiled by XLA, exact and guarded."""

import contextlib
import functools
import inspect
import logging

import keras
from keras import ops
from keras.src.trainers.trainer import model_supports_jit

from keras_vqdit.training.guard import FINE, LOSS, SkippedSteps, all_finite, find_cause, steps_optimizer
from keras_vqdit.training.replica_steps import batch_size, check_no_strategy, check_strategy, is_seed, to_numpy
from keras_vqdit.training.run import Run

BACKEND = keras.backend.backend()
FIT = inspect.signature(keras.Model.fit)
logger = logging.getLogger("keras_vqdit")


class DistributedModel(keras.Model):
    """Base class of the models: `fit`, `evaluate` and `predict` under strategies of `tf.distribute`, with guard rails.

    Without a strategy it trains as `keras.Model` does. Under a strategy Keras compiles a step of all replicas into one XLA
    program, which fails. Here each replica has two programs of its own, functions of values alone: one for the losses and
    gradients of its examples, and one for the optimizer. Between the two the replicas add up their gradients and statistics,
    weighted by their numbers of examples, so that R replicas train as one would on all examples.

    Every replica draws its own random numbers: its number enters the seeds. Layers that learn from data in `call`, as a
    codebook does, see the data of all replicas: see `keras_vqdit.layers.replicas`.

    The model, and its optimizer, must be made within `strategy.scope()`, that of a `MirroredStrategy` or a
    `MultiWorkerMirroredStrategy`. A loss with the reduction `"mean_with_sample_weight"` is the mean of the replicas' means.

    A step whose loss or gradients are not finite is skipped: it changes nothing but the count `skipped_steps`. (On TensorFlow
    and JAX; PyTorch trains without this.)

    Attributes:
        max_skipped_steps: training stops with a `FloatingPointError` after so many skipped steps in a row. Defaults to 30, for
            float16 needs up to some 20 to find the scale of its loss.
    """

    max_skipped_steps = 30

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.skips = SkippedSteps()
        self._run = Run(self)

    @property
    def skipped_steps(self):
        """How many training steps were skipped since the model was made."""
        return int(to_numpy(self.skips.total))

    @property
    def diverged(self):
        """Whether the last training steps were skipped because their loss was not finite, although their data were."""
        return int(to_numpy(self.skips.in_a_row)) > 0 and int(to_numpy(self.skips.cause)) == LOSS

    @property
    def _replicated(self):
        return BACKEND == "tensorflow" and self._distribute_strategy is not None

    def scale_for_replicas(self, loss):
        """A replica's part of the loss, as `compute_loss` has to return it: the parts add up to the mean over replicas."""
        return loss / self._distribute_strategy.num_replicas_in_sync if self._replicated else loss

    # === What Keras calls ===

    def compile(self, *args, jit_compile="auto", **kwargs):
        if BACKEND == "tensorflow" and self._distribute_strategy is None:
            check_no_strategy(self)
        elif BACKEND == "tensorflow":
            check_strategy(self._distribute_strategy)
        super().compile(*args, jit_compile=jit_compile, **kwargs)
        if jit_compile == "auto":
            logger.info('%s: jit_compile="auto" chose %s', self.name, self.jit_compile)
        self._run = Run(self)

    def compile_from_config(self, config):
        # Keras does this by itself only for models that leave `compile` alone.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    @property
    def fixed_variables(self):
        """Variables that were given, and that training never changes."""
        return []

    def get_metrics_result(self):
        logs = super().get_metrics_result()
        if self.compiled and "loss" in logs:  # Keras calls the mean of nothing 0, as if all had been learned
            some = ops.cast(self._loss_tracker.count, "float32") > 0
            logs["loss"] = ops.where(some, logs["loss"], float("nan"))
        return logs

    def _resolve_auto_jit_compile(self):
        # Keras's own answer for TensorFlow is no, without a GPU or under a strategy.
        return model_supports_jit(self) if BACKEND == "tensorflow" else super()._resolve_auto_jit_compile()

    @functools.wraps(keras.Model.fit)
    def fit(self, x=None, y=None, *args, **kwargs):
        arguments = FIT.bind(self, x, y, *args, **kwargs).arguments
        run = self._run
        arguments["callbacks"] = run.begin(x, y, arguments.get("shuffle", True), arguments.get("callbacks"))
        try:
            with run.replicas.explain_lost_workers() if self._replicated else contextlib.nullcontext():
                history = super().fit(**{name: value for name, value in arguments.items() if name != "self"})
            run.watch.look_at_last()
            return history
        finally:
            self._initial_epoch = None  # that of `Checkpoint` is for this call alone
            run.end()

    # Keras would give the whole batch to each replica.

    def train_on_batch(self, *args, **kwargs):
        self._check_not_replicated("train_on_batch", "fit")
        return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        self._check_not_replicated("test_on_batch", "evaluate")
        return super().test_on_batch(*args, **kwargs)

    def predict_on_batch(self, *args, **kwargs):
        self._check_not_replicated("predict_on_batch", "predict")
        return super().predict_on_batch(*args, **kwargs)

    def _check_not_replicated(self, name, instead):
        if self._replicated:
            raise ValueError(f"`{name}` does not divide a batch between replicas: under a strategy use `{instead}`")

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            super().make_train_function(force)
            self.train_function = self._run.around(self.train_function)

    def _make_function(self, step_function, *args, **kwargs):
        if not self._replicated:
            return super()._make_function(step_function, *args, **kwargs)
        return self._run.replicas.make_function(step_function, training=step_function == self.train_step)

    def make_predict_function(self, force=False):
        with self._without_outer_program() if self._replicated else contextlib.nullcontext():
            return super().make_predict_function(force)

    @contextlib.contextmanager
    def _without_outer_program(self):
        """Keep Keras from compiling all replicas into one program."""
        asked = self.jit_compile
        self._jit_compile = False
        try:
            yield
        finally:
            self._jit_compile = asked

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras takes a batch off the data set here, which changes the order of a shuffled one. We build with the first batch.
        if not self._replicated:
            super()._maybe_symbolic_build(iterator, data_batch)

    # === Steps: of `(data)` on TensorFlow and PyTorch, of `(state, data)` on JAX ===

    def train_step(self, *arguments):
        if BACKEND == "jax":
            return self._train_step_of_jax(*arguments)
        if BACKEND != "tensorflow":
            return super().train_step(*arguments)
        return self._run.replicas.train(*arguments) if self._replicated else self._train_step_alone(*arguments)

    def test_step(self, *arguments):
        return self._run.replicas.test(*arguments) if self._replicated else super().test_step(*arguments)

    def predict_step(self, *arguments):
        return self._run.replicas.predict(*arguments) if self._replicated else super().predict_step(*arguments)

    def _train_step_alone(self, data):
        """The step of `keras.Model`, which a loss or gradients that are not finite undo."""
        import tensorflow as tf

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        state = [v for v in [*self.non_trainable_variables, *self.metrics_variables] if not is_seed(v)]
        before = [tf.convert_to_tensor(variable.value) for variable in state]
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
            self._loss_tracker.update_state(loss, sample_weight=batch_size(x))
            scaled = self.optimizer.scale_loss(loss)
        trainable = self.trainable_variables
        gradients = tape.gradient(scaled, trainable)
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        dense = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
        cause = find_cause(all_finite(data), tf.math.is_finite(loss), dense)

        def step():
            if trainable:
                self.optimizer.apply_gradients(zip(gradients, trainable, strict=True))

        def undo():
            for variable, value in zip(state, before, strict=True):
                variable.assign(value)

        def nothing():
            pass

        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            tf.cond(steps_optimizer(cause, self.optimizer), step, nothing)
            tf.cond(tf.equal(cause, FINE), nothing, undo)
        else:
            tf.cond(tf.equal(cause, FINE), step, undo)
        self.skips.update_state(cause)
        return {**logs, **self.get_metrics_result()}  # those of a step that was undone are undone

    def _train_step_of_jax(self, state, data):
        """The step of `keras.Model`, which a loss or gradients that are not finite undo."""
        import jax

        trainable, non_trainable, optimizer, metrics = state
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        differentiate = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)
        (_, (loss, y_pred, new_non_trainable, new_metrics)), gradients = differentiate(
            trainable, non_trainable, metrics, x, y, sample_weight, training=True, optimizer_variables=optimizer
        )
        new_trainable, new_optimizer = self.optimizer.stateless_apply(optimizer, gradients, trainable)
        logs, new_metrics = self._update_metrics_variables(new_metrics, loss, x, y, y_pred, sample_weight)
        cause = find_cause(all_finite(data), ops.isfinite(loss), gradients)

        def choose(condition, after, before):
            return [ops.where(condition, a, b) for a, b in zip(after, before, strict=True)]

        fine, steps = ops.equal(cause, FINE), steps_optimizer(cause, self.optimizer)
        trainable, optimizer = choose(steps, new_trainable, trainable), choose(steps, new_optimizer, optimizer)
        non_trainable, metrics = choose(fine, new_non_trainable, non_trainable), choose(fine, new_metrics, metrics)
        for i, variable in enumerate(self.non_trainable_variables):
            if is_seed(variable):
                non_trainable[i] = new_non_trainable[i]
        with keras.StatelessScope(list(zip(self.metrics_variables, metrics, strict=True))) as scope:
            self.skips.update_state(cause)
            logs = {**logs, **self.get_metrics_result()}  # those of a step that was undone are undone
        metrics = [scope.get_current_value(variable) for variable in self.metrics_variables]
        return logs, (trainable, non_trainable, optimizer, metrics)
