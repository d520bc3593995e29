"""Training recipes of sound, with settings that work on a CPU."""

import keras
import numpy as np

from keras_vqdit import data
from keras_vqdit.metrics.audio import log_spectral_distance, si_sdr, spectral_convergence
from keras_vqdit.models.audio_tokenizer import AudioTokenizer
from keras_vqdit.recipes import learning_rate_schedule, to_arrays
from keras_vqdit.training import scope


def train_audio_tokenizer(
    train,
    test=None,
    *,
    epochs,
    size="speech",
    learning_rate=4e-3,
    verbose=1,
    callbacks=None,
    strategy=None,
    **options,
):
    """Train an `AudioTokenizer` on a data set of sound.

    Args:
        train, test: data sets of `keras_vqdit.data.load`; `test` may be `None`.
        epochs: number of epochs.
        size: name of the architecture, see `AudioTokenizer.from_size`.
        learning_rate: highest learning rate. Defaults to 0.004.
        verbose: as in `fit`.
        callbacks: as in `fit`.
        strategy: of `tf.distribute`. Defaults to `None`.
        **options: arguments of `AudioTokenizer.from_size`, such as `num_levels`.

    Returns:
        Tuple of the tokenizer and a dict of the training curves.

    Raises:
        ValueError: if the data have no "audio".

    Example:
        ```python
        train, test = data.load("spoken_digit", batch_size=32, audio_length=6144, audio_copies=8)
        tokenizer, history = train_audio_tokenizer(train, test, epochs=10)
        ```
    """
    info = data.describe(train)
    if "audio" not in info.shapes:
        raise ValueError(f'The data must have "audio". Received: features {sorted(info.shapes)}')
    options = {"input_shape": info.shapes["audio"], **options}
    if info.sample_rate is not None:
        options = {"sample_rate": info.sample_rate, **options}
    schedule = learning_rate_schedule(train, epochs, learning_rate)
    with scope(strategy):
        tokenizer = AudioTokenizer.from_size(size, **options)
        tokenizer.compile(keras.optimizers.AdamW(schedule, weight_decay=0.0, beta_2=0.99, clipnorm=1.0))
    history = tokenizer.fit(
        train, validation_data=test, epochs=epochs, shuffle=False, verbose=verbose, callbacks=callbacks
    )
    return tokenizer, history.history


def measure_audio_tokenizer(tokenizer, test, *, judge=None, batch_size=250):
    """How well a tokenizer restores sounds that it has not seen, and how it uses its codebooks.

    Args:
        tokenizer: a trained `AudioTokenizer`.
        test: data set of `keras_vqdit.data.load`.
        judge: classifier of `metrics.train_speech_classifier`, or `None`.
        batch_size: examples that are restored at a time. Defaults to 250.

    Returns:
        Dict of `spectral_convergence`, `log_spectral_distance` and `si_sdr`, in dB, means over the sounds; `codes_used`
        (fraction) and `perplexity`, a list of one a level each; `bits_per_second`; with a judge `accuracy` of the restored sounds
        and `accuracy_of_originals`.
    """
    audio = to_arrays(test, tokenizer.modality)
    batches = [audio[begin : begin + batch_size] for begin in range(0, len(audio), batch_size)]
    codes = np.concatenate([np.asarray(tokenizer.encode(batch)) for batch in batches])
    restored = np.concatenate(
        [np.asarray(tokenizer.decode(codes[begin : begin + batch_size])) for begin in range(0, len(audio), batch_size)]
    )
    found = {
        "spectral_convergence": float(spectral_convergence(audio, restored).mean()),
        "log_spectral_distance": float(log_spectral_distance(audio, restored).mean()),
        "si_sdr": float(si_sdr(audio, restored).mean()),
        "codes_used": [],
        "perplexity": [],
        "bits_per_second": float(tokenizer.bits_per_second),
    }
    for level in codes.reshape(-1, codes.shape[-1]).T:
        counts = np.bincount(level, minlength=tokenizer.num_embeddings)
        share = counts[counts > 0] / len(level)
        found["codes_used"].append(float(np.mean(counts > 0)))
        found["perplexity"].append(float(np.exp(-np.sum(share * np.log(share)))))
    if judge is not None:
        labels = to_arrays(test, "label")
        for name, sounds in (("accuracy", restored), ("accuracy_of_originals", audio)):
            predicted = np.argmax(judge.predict(sounds, batch_size=batch_size, verbose=0), axis=-1)
            found[name] = float(np.mean(predicted == labels))
    return found
