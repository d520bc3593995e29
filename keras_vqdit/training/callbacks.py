"""Callbacks that show how a training goes: `Throughput`, examples a second, and `TensorBoard`, curves and pictures."""

import importlib.util
import io
import logging
import time

import keras
import numpy as np
from keras import ops

from keras_vqdit.checks import positive_integer
from keras_vqdit.training.replica_steps import to_numpy
from keras_vqdit.training.strategies import is_writer

logger = logging.getLogger("keras_vqdit")
NUM_DRAWN = 8


class Throughput(keras.callbacks.Callback):
    """Add `samples_per_second`, the examples trained on a second, to the logs of each epoch.

    It counts what the model was given, batches of any size, on all replicas together. The clock runs from the end of an epoch's
    first step, which compiles, to the end of its last one; if an epoch has one step, over that. Validation is left out, and what
    `Checkpoint` passes over after a restart. Steps that were skipped take time, and their examples do not count.

    Give it before other callbacks that read the logs, such as `TensorBoard`. An epoch in which nothing is left
    to train after a restart has NaN.

    Example:

    ```python
    model.fit(train, epochs=12, callbacks=[kv.training.Throughput()]).history["samples_per_second"]
    ```
    """

    async_safe = True  # Keras need not wait for each step on account of this callback

    def __init__(self):
        super().__init__()
        self._reset()

    def _reset(self):
        self.steps, self.passed_over = 0, False
        self.start = self.first = None  # (examples, seconds) before the first step, and after it
        self.ended = 0.0  # when the last step did
        self.measured = False
        self.rate = float("nan")  # if nothing is trained, as after a restart at the end of an epoch

    def on_epoch_begin(self, epoch, logs=None):
        self._reset()

    def on_train_batch_begin(self, batch, logs=None):
        if getattr(getattr(self.model, "_run", None), "steps_to_skip", 0):
            self.passed_over = True
            return
        self.steps += 1
        if self.steps == 1:  # a checkpoint brings the count of what was trained before
            self.start = self._look() if self.passed_over else (0.0, time.perf_counter())
        elif self.steps == 2:
            self.first = self._look()

    def on_train_batch_end(self, batch, logs=None):  # on JAX in a thread that waits for the step
        self.ended = max(self.ended, time.perf_counter())

    def on_test_begin(self, logs=None):  # validation begins, and resets the count
        self._measure()

    def on_epoch_end(self, epoch, logs=None):
        self._measure()
        if logs is not None:
            logs["samples_per_second"] = self.rate

    def _look(self):
        """How many examples were trained on since the epoch began, and the time when that was known."""
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        return float(to_numpy(self.model._loss_tracker.count)), time.perf_counter()  # waits for the device

    def _measure(self):
        if self.measured or self.start is None:
            return
        self.measured = True
        examples, _ = self._look()
        # Keras begins a step, too, to find that data of unknown size are at their end.
        several = self.first is not None and examples > self.first[0]
        before, begin = self.first if several else self.start
        if examples > before:
            self.rate = (examples - before) / (self.ended - begin)


class TensorBoard(keras.callbacks.TensorBoard):
    """Log losses and metrics for TensorBoard, with pictures of what the model restores or draws, and its codebook.

    To what `keras.callbacks.TensorBoard` writes it adds

    - `epoch_skipped_steps`, beside the `epoch_…` of losses, metrics and the learning rate;
    - of an auto-encoder, `reconstructions` of `examples`;
    - of a diffusion model, `samples`, the same ones in every epoch but for what the model has learned;
    - of a vector quantizer, the histograms `codebook/usage`, how often each code was chosen for `examples`, a bucket a code, and
      `codebook/norms` of the codes.

    Pictures are of images with 1 or 3 channels. They change nothing in training. On several workers the first one logs.

    Args:
        log_dir: where the files are: one folder for each training. Defaults to `"logs"`.
        examples: a batch of data for an auto-encoder: array in [-1, 1], or a dict with the model's modality. The first 8 are
            drawn, all are encoded. Defaults to `None`, no reconstructions.
        labels: of a diffusion model's samples, as in `generate`. Defaults to `None`.
        num_samples: how many samples, where labels do not tell. Defaults to 8.
        num_steps: steps of the sampler. Defaults to 20.
        sampling: dict of other arguments of `generate`, such as `guidance_scale` or `context`. Defaults to `None`.
        figures_every: pictures and histograms are made after so many epochs. Defaults to 1.
        **kwargs: of `keras.callbacks.TensorBoard`, such as `update_freq`.

    Raises:
        ImportError: if the package `tensorboard` is not installed.
        TypeError: if `examples` or `sampling` are of another type.
        ValueError: if an argument has an impossible value; when `fit` begins, if `examples` do not fit the model.

    Example:

    ```python
    train, test = kv.data.load("mnist_5k")
    examples = next(iter(test))
    tokenizer = kv.VQVAE.from_size("digits")
    tokenizer.compile("adam")
    tokenizer.fit(train, epochs=12, callbacks=[kv.training.TensorBoard("logs/tokenizer", examples=examples)])
    ```

    and `tensorboard --logdir logs` shows it.
    """

    def __init__(
        self,
        log_dir="logs",
        *,
        examples=None,
        labels=None,
        num_samples=None,
        num_steps=20,
        sampling=None,
        figures_every=1,
        **kwargs,
    ):
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                'The callback `TensorBoard` needs the package tensorboard: pip install "keras_vqdit[tensorboard]"'
            )
        super().__init__(log_dir, **kwargs)
        leaves = list(examples.values()) if isinstance(examples, dict) else [examples]
        if examples is not None and not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
            raise TypeError(
                "`examples` must be a batch: an array, or a dict of arrays, such as `next(iter(dataset))`. "
                f"Received: examples of type {type(examples).__name__}"
            )
        if sampling is not None and not isinstance(sampling, dict):
            raise TypeError(f"`sampling` must be a dict of arguments of `generate`. Received: sampling={sampling!r}")
        self.examples, self.labels = examples, labels
        self.num_samples = None if num_samples is None else positive_integer("num_samples", num_samples)
        self.num_steps = positive_integer("num_steps", num_steps)
        self.sampling = dict(sampling or {})
        self.figures_every = positive_integer("figures_every", figures_every)
        self._told = False  # that there are no pictures of such data

    # === Who logs ===

    @property
    def is_writer(self):
        """Whether this process logs: on several workers, the first one."""
        return is_writer(getattr(self.model, "_distribute_strategy", None))

    @property
    def _train_writer(self):
        return super()._train_writer if self.is_writer else self.summary.create_noop_writer()

    @property
    def _val_writer(self):
        return super()._val_writer if self.is_writer else self.summary.create_noop_writer()

    def _configure_embeddings(self):
        if self.is_writer:
            super()._configure_embeddings()

    def _log_embeddings(self, epoch):
        if self.is_writer:
            super()._log_embeddings(epoch)

    # === What Keras calls ===

    def on_train_begin(self, logs=None):
        if self._is_autoencoder and self.examples is not None:
            examples = self._picked_examples()
            if self.model.built:  # mistakes are told now, not after an epoch
                self.model.encode(examples[:1])
        super().on_train_begin(logs)

    def on_epoch_end(self, epoch, logs=None):
        logs = dict(logs or {})
        if hasattr(self.model, "skipped_steps"):
            logs["skipped_steps"] = self.model.skipped_steps
        with self.summary.record_if(True):  # Keras leaves out most epochs where `update_freq` is a number
            super().on_epoch_end(epoch, logs)
            if self.is_writer and (epoch + 1) % self.figures_every == 0:
                with self._train_writer.as_default(step=epoch):
                    self._log_figures(epoch)
                self._train_writer.flush()

    # === Pictures ===

    # What a model is, it shows by its methods: this room knows no models.

    @property
    def _is_autoencoder(self):
        return hasattr(self.model, "encode_latents") and hasattr(self.model, "decode")

    def _log_figures(self, epoch):
        if self._is_autoencoder:
            quantizer = getattr(self.model, "vq", None)
            if self.examples is not None:
                examples = self._picked_examples()
                codes = self.model.encode(examples)
                self._draw_reconstructions(epoch, examples[:NUM_DRAWN], self.model.decode(codes[:NUM_DRAWN]))
                if quantizer is not None:
                    self._log_usage(ops.convert_to_numpy(codes), self.model.num_embeddings)
            if hasattr(quantizer, "codebook"):
                norms = np.linalg.norm(ops.convert_to_numpy(quantizer.codebook), axis=-1)
                self.summary.histogram("codebook/norms", norms)
        elif hasattr(self.model, "generate") and not hasattr(
            self.model, "modalities"
        ):  # of several there is no one picture
            self._draw_samples(epoch)

    def _picked_examples(self):
        if not isinstance(self.examples, dict):
            return self.examples
        key = self.model.modality
        if key not in self.examples:
            raise ValueError(
                f'`examples` must have a key "{key}", the `modality` of the model. Received: keys {sorted(self.examples)}'
            )
        return self.examples[key]

    def _draw_reconstructions(self, epoch, examples, restored):
        examples, restored = _to_range(examples), _to_range(restored)
        if self._can_be_drawn(examples):
            from keras_vqdit import plotting  # a room below this one, which it needs for pictures alone

            figure = plotting.reconstructions(examples, restored, title=f"Reconstructions, epoch {epoch + 1}")
            self.summary.image("reconstructions", _pixels(figure)[None])

    def _draw_samples(self, epoch):
        count = self.num_samples
        if count is None and np.ndim(self.labels) == 0 and "context" not in self.sampling:
            count = NUM_DRAWN
        options = {"labels": self.labels, "num_samples": count, "num_steps": self.num_steps, "seed": 0, "verbose": 0}
        samples = _to_range(self.model.generate(**(options | self.sampling)))
        if self._can_be_drawn(samples):
            from keras_vqdit import plotting

            layout = _layout(self.labels, len(samples))
            figure = plotting.image_grid(samples, title=f"Samples, epoch {epoch + 1}", **layout)
            self.summary.image("samples", _pixels(figure)[None])

    def _can_be_drawn(self, data):
        drawn = data.ndim == 4 and data.shape[-1] in (1, 3)
        if not drawn and not self._told:
            self._told = True
            logger.warning("`TensorBoard` draws images with 1 or 3 channels. Received: data of shape %s", data.shape)
        return drawn

    def _log_usage(self, codes, num_embeddings):
        """A histogram with a bucket a code. (That of TensorFlow would take memory for all codes times all positions.)"""
        from tensorboard.plugins.histogram import metadata

        counts = np.bincount(codes[codes >= 0], minlength=num_embeddings)
        left = np.arange(num_embeddings) - 0.5
        buckets = np.stack([left, left + 1.0, counts], axis=1)
        about = metadata.create_summary_metadata(display_name=None, description=None)
        self.summary.write("codebook/usage", buckets, metadata=about)


def _to_range(images):
    """float32 NumPy array in [-1, 1]: a model that goes astray still gets its picture."""
    images = np.asarray(ops.convert_to_numpy(ops.cast(images, "float32")))
    return np.clip(np.nan_to_num(images), -1.0, 1.0)


def _layout(labels, count):
    """Where each label goes in a grid of images: a row for each run of equal ones, or a column for each of a few."""
    if labels is None:
        return {}
    labels = np.broadcast_to(labels, (count,))
    changes = np.flatnonzero(labels[1:] != labels[:-1])
    run = int(changes[0]) + 1 if changes.size else count
    if run > 1 and count % run == 0 and np.array_equal(labels, np.repeat(labels[::run], run)):
        return {"columns": run, "row_labels": labels[::run]}
    return {"columns": count, "column_labels": labels} if count <= 16 else {}


def _pixels(figure):
    """A figure as floats (height, width, 3) in [0, 1], the same that a file would show."""
    from matplotlib.image import imread

    with io.BytesIO() as file:
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.08)
        file.seek(0)
        pixels = imread(file, format="png")[..., :3]
    figure.clear()  # no pyplot holds it: nothing is left to close
    return pixels
