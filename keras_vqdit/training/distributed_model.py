"""`DistributedModel`: a `keras.Model` whose `fit` works under `tf.distribute`, compiled by XLA, exact."""

import contextlib
import types

import keras
from keras import ops

from keras_vqdit.layers.replicas import deferred_learning

TENSORFLOW = keras.backend.backend() == "tensorflow"


class DistributedModel(keras.Model):
    """Base class of the models: `fit`, `evaluate` and `predict` under any `tf.distribute` strategy.

    Without a strategy, and on other backends than TensorFlow, it is `keras.Model`. Under a strategy Keras compiles a step of
    all replicas into one XLA program, which fails. Here each replica has two programs of its own, functions of values alone:
    one for the losses and gradients of its examples, and one for the optimizer. Between the two the replicas add up their
    gradients and statistics, weighted by their numbers of examples, so that R replicas train as one would on all examples.

    Every replica draws its own random numbers: its number enters the seeds. Layers that learn from data in `call`, as a
    codebook does, see the data of all replicas: see `keras_vqdit.layers.replicas`.

    The model, and its optimizer, must be made within `strategy.scope()`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._step = _Step()

    @property
    def _replicated(self):
        return TENSORFLOW and self._distribute_strategy is not None

    def scale_for_replicas(self, loss):
        """A replica's part of the loss, as `compute_loss` has to return it: the parts add up to the mean over replicas."""
        return loss / self._distribute_strategy.num_replicas_in_sync if self._replicated else loss

    # === The functions that Keras calls ===

    def _make_function(self, step_function, *args, **kwargs):
        if not self._replicated:
            return super()._make_function(step_function, *args, **kwargs)
        import tensorflow as tf

        strategy, training = self._distribute_strategy, step_function == self.train_step

        def one_step(data):
            logs = strategy.run(step_function, args=(data,))
            return tf.nest.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), logs)

        one_step = self._autoconvert_optionals(one_step if self.run_eagerly else tf.function(one_step))

        def steps(iterator):
            logs = None
            for _, data in zip(range(self.steps_per_execution), iterator):
                if not self._step.begun:
                    self._begin(data)
                if training and not self._step.started:
                    strategy.run(self._start_layers, args=(data,))
                    self._step.started = True
                logs = one_step(data)
            if logs is None:
                raise StopIteration
            return logs

        return steps

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

    def compile(self, *args, **kwargs):
        super().compile(*args, **kwargs)
        self._step = _Step()

    # === The first batch ===

    def _begin(self, batch):
        """Build what is not built yet, as the batch has it."""
        import tensorflow as tf

        strategy = self._distribute_strategy
        local = tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], batch)
        if self.optimizer is not None:
            _check_made_within_scope(self.optimizer.variables)
        with strategy.scope():
            if not self.built or not self._compile_metrics_built:
                self._symbolic_build(data_batch=local)
            if self.optimizer is not None and not self.optimizer.built:
                self.optimizer.build(self.trainable_variables)
        _check_made_within_scope(self.weights)
        self._step.begun = True

    @property
    def _compile_metrics_built(self):
        metrics = getattr(self, "_compile_metrics", None)
        return metrics is None or metrics.built

    def _start_layers(self, data):
        """Let layers that start from data do so, before the first step, from the first batch of all replicas."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        variables = self._variables_of_a_step()

        def observe(values, x):  # compiled as the steps are, for XLA has random numbers of its own
            with keras.StatelessScope(list(zip(variables, values, strict=True))), deferred_learning() as notes:
                self(x, training=True)
            self._clear_losses()
            self._step.learners = [layer for layer, _ in notes]
            return [seen for _, seen in notes]

        observations = self._program("start", observe)(_values(variables), x)
        for layer, seen in zip(self._step.learners, observations, strict=True):
            if hasattr(layer, "start"):
                layer.start(**_join(seen))

    # === One replica's step ===

    def train_step(self, *arguments):
        if not self._replicated:
            return super().train_step(*arguments)
        (data,) = arguments  # on JAX there is a state before the data
        import tensorflow as tf

        replica = tf.distribute.get_replica_context()
        share = self._share(data, replica)
        trainable = self.trainable_variables
        loss_scale = self.optimizer.scale_loss(tf.constant(1.0))
        logs, gradients, observations = self._run_program("train", data, share, loss_scale, replica)

        known = [gradient for gradient in gradients if gradient is not None]
        known = replica.all_reduce(tf.distribute.ReduceOp.SUM, known) if known else []
        gradients = [None if gradient is None else known.pop(0) for gradient in gradients]
        for layer, seen in zip(self._step.learners, observations, strict=True):
            layer.learn(**_join(seen))  # before the optimizer, as on one device
        self._optimize(trainable, gradients)
        return logs

    def test_step(self, *arguments):
        if not self._replicated:
            return super().test_step(*arguments)
        (data,) = arguments  # on JAX there is a state before the data
        import tensorflow as tf

        replica = tf.distribute.get_replica_context()
        logs, _, _ = self._run_program("test", data, self._share(data, replica), tf.constant(1.0), replica)
        return logs

    def predict_step(self, *arguments):
        if not self._replicated:
            return super().predict_step(*arguments)
        (data,) = arguments  # on JAX there is a state before the data
        if not self.built:
            raise ValueError(
                "The model must be built before `predict` under a strategy: train it, or call it on a batch"
            )
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        variables = self._variables_of_a_step()

        def predict(values, x):
            with keras.StatelessScope(list(zip(variables, values, strict=True))):
                return self(x, training=False)

        return self._program("predict", predict)(_values(variables), x)

    def _share(self, data, replica):
        """This replica's part of all examples of the step, as a factor of the mean of its own: 1 if all have equally many."""
        import tensorflow as tf

        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        size = tf.cast(_batch_size(x), "float32")
        total = replica.all_reduce(tf.distribute.ReduceOp.SUM, size)
        return size * replica.num_replicas_in_sync / total

    def _variables_of_a_step(self):
        return [*self.trainable_variables, *self.non_trainable_variables, *self.metrics_variables]

    def _run_program(self, name, data, share, loss_scale, replica):
        """Losses, gradients and new states of one replica; the states are assigned."""
        training = name == "train"
        trainable = self.trainable_variables
        state = [*self.non_trainable_variables, *self.metrics_variables]
        folded = self._folded_seeds()
        changed = self._step.changed.setdefault(name, [])

        def program(trainable_values, state_values, data, share, loss_scale, replica_id):
            import tensorflow as tf

            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            begin = [
                value + ops.stack([ops.cast(replica_id * 7919, value.dtype), ops.zeros((), value.dtype)])
                if id(variable) in folded
                else value
                for variable, value in zip(state, state_values, strict=True)
            ]
            mapping = [*zip(trainable, trainable_values, strict=True), *zip(state, begin, strict=True)]
            with tf.GradientTape() as tape:
                tape.watch(trainable_values)
                with keras.StatelessScope(mapping) as scope, deferred_learning() as notes:
                    y_pred = self(x, training=training)
                    loss = self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
                    mean = loss * replica.num_replicas_in_sync
                    self._loss_tracker.update_state(mean, sample_weight=_batch_size(x))
                    logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
                scaled = loss * share * loss_scale
            gradients = tape.gradient(scaled, trainable_values) if training else []
            gradients = [None if g is None else tf.convert_to_tensor(g) for g in gradients]  # of an embedding, too
            self._clear_losses()
            del changed[:]
            values = []
            for variable, old, new in zip(
                state, zip(state_values, begin), map(scope.get_current_value, state), strict=True
            ):
                if new is None or new is old[1]:
                    continue
                changed.append(variable)
                values.append(new - old[1] + old[0] if id(variable) in folded else new)
            if training:
                self._step.learners = [layer for layer, _ in notes]
            return logs, gradients, [seen for _, seen in notes], values

        run = self._program(name, program)
        replica_id = replica.replica_id_in_sync_group
        logs, gradients, observations, values = run(
            _values(trainable), _values(state), data, share, loss_scale, replica_id
        )
        self._assign(changed, values, share, replica)
        return logs, gradients, observations

    def _program(self, name, function):
        if self.run_eagerly:
            return function
        if name not in self._step.programs:
            import tensorflow as tf

            self._step.programs[name] = tf.function(function, jit_compile=bool(self.jit_compile))
        return self._step.programs[name]

    def _folded_seeds(self):
        """The seeds that differ between replicas: all but those of layers that draw for all of them at once."""
        shared = {
            id(generator.state)
            for layer in self._flatten_layers()
            for generator in getattr(layer, "shared_seed_generators", ())
        }
        return {
            id(variable)
            for variable in self.non_trainable_variables
            if variable.name == "seed_generator_state" and id(variable) not in shared
        }

    def _assign(self, variables, values, share, replica):
        """New states: means and sums over the replicas where a variable asks for them, else the replica's own."""
        import tensorflow as tf

        reduce = {"mean": tf.distribute.ReduceOp.MEAN, "sum": tf.distribute.ReduceOp.SUM}
        metrics = {id(variable) for variable in self.metrics_variables}
        for kind, operation in reduce.items():
            chosen = [i for i, v in enumerate(variables) if v.aggregation == kind and id(v) not in metrics]
            if chosen:
                parts = [values[i] * share if kind == "mean" else values[i] for i in chosen]
                for i, value in zip(chosen, replica.all_reduce(operation, parts), strict=True):
                    values[i] = value
        for variable, value in zip(variables, values, strict=True):
            _assign_here(variable, value)

    def _optimize(self, trainable, gradients):
        """The optimizer's step, the same on every replica."""
        optimizer = self.optimizer
        variables = optimizer.variables

        def update(values, gradients, trainable_values):
            with _stateless(optimizer):
                return optimizer.stateless_apply(values, gradients, trainable_values)

        run = self._program("optimizer", update)
        new_trainable, new_variables = run(_values(variables), gradients, _values(trainable))
        for variable, value in zip([*trainable, *variables], [*new_trainable, *new_variables], strict=True):
            _assign_here(variable, value)


class _Step:
    """What belongs to the compiled steps of a model; plain, so that Keras tracks nothing of it."""

    def __init__(self):
        self.programs = {}  # name -> compiled function of one replica
        self.changed = {}  # name -> the variables that it gives new values
        self.learners = []  # the layers that learn after a training step
        self.begun = False  # the model, its metrics and its optimizer are built
        self.started = False  # layers that start from data have done so


def _batch_size(x):
    return ops.shape(next(part for part in keras.tree.flatten(x) if part is not None))[0]


def _check_made_within_scope(variables):
    """A variable of one device would be written by all replicas in turn."""
    import tensorflow as tf

    alone = [v.path for v in variables if not isinstance(v._value, tf.distribute.DistributedValues)]
    if alone:
        raise ValueError(
            "The model and its optimizer must be made, and the model compiled, within `strategy.scope()`. "
            f"Received: {len(alone)} variables made outside of it, such as {alone[0]!r}"
        )


def _values(variables):
    """This replica's values of variables."""
    import tensorflow as tf

    return [tf.convert_to_tensor(variable.value) for variable in variables]


def _assign_here(variable, value):
    """Assign to this replica's copy of a variable."""
    copy = variable._value
    copy = copy._get() if hasattr(copy, "_get") else copy
    copy.assign(value)


def _join(observations):
    """The observations of all replicas, one after the other, in the order of the examples."""
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    return {name: value if value is None else replica.all_gather(value, axis=0) for name, value in observations.items()}


@contextlib.contextmanager
def _stateless(optimizer):
    """Let a Keras optimizer work on values: its TensorFlow half, which writes to variables, makes way for the general one."""
    optimizers = [optimizer]
    while hasattr(optimizers[-1], "inner_optimizer"):
        optimizers.append(optimizers[-1].inner_optimizer)
    for one in optimizers:
        classes = type(one).__mro__
        special = next(c for c in classes if c.__name__ == "TFOptimizer")
        general = next(c for c in classes if c.__name__ == "BaseOptimizer")
        for name in vars(special):
            replaced = getattr(type(one), name, None) is vars(special)[name] and hasattr(general, name)
            if replaced and not name.startswith("__") and name not in ("add_variable_from_reference", "_clip_by_norm"):
                one.__dict__[name] = types.MethodType(getattr(general, name), one)
        one.__dict__["_var_key"] = lambda variable: variable._value._unique_id
        one.__dict__["_backend_apply_gradients"] = types.MethodType(_apply_gradients, one)
    try:
        yield
    finally:
        for one in optimizers:
            special = next(c for c in type(one).__mro__ if c.__name__ == "TFOptimizer")
            for name in vars(special):
                if not name.startswith("__"):
                    one.__dict__.pop(name, None)
            one.__dict__.pop("_backend_apply_gradients", None)


def _apply_gradients(optimizer, gradients, variables):
    """What an optimizer does with gradients, without conditions that write to variables: those are lost among values."""

    def update(gradients):
        gradients = optimizer._clip_gradients(gradients)
        optimizer._apply_weight_decay(variables)
        optimizer._backend_update_step(gradients, variables, optimizer.learning_rate)

    def restore_unless(condition, changed, before):
        for variable, old in zip(changed, before, strict=True):
            variable.assign(ops.where(condition, variable.value, old))

    steps = optimizer.gradient_accumulation_steps
    if steps:
        complete = ops.equal((optimizer._iterations + 1) % steps, 0)
        slots = [optimizer._accumulated_gradients[optimizer._get_variable_index(v)] for v in variables]
        sums = [gradient + slot.value for gradient, slot in zip(gradients, slots, strict=True)]
        changed = [*variables, *optimizer.variables]
        before = [variable.value for variable in changed]
        update([total / steps for total in sums])
        restore_unless(complete, changed, before)
        for slot, total in zip(slots, sums, strict=True):
            slot.assign(ops.where(complete, ops.zeros_like(total), total))
    else:
        update(gradients)

    if optimizer.use_ema:
        trainable = optimizer._trainable_variables
        optimizer._update_model_variables_moving_average(trainable)
        if optimizer.ema_overwrite_frequency:
            due = ops.equal((optimizer.iterations + 1) % optimizer.ema_overwrite_frequency, 0)
            before = [variable.value for variable in trainable]
            optimizer._overwrite_model_variables_with_average_value(trainable)
            restore_unless(due, trainable, before)
