"""Sources of sound: TensorFlow Datasets and folders of WAV files, and sounds of one length and loudness."""

import re

import numpy as np

from keras_vqdit.data.audio import augment, fit_length, normalize_peak, read_wav
from keras_vqdit.data.examples import Examples
from keras_vqdit.data.folders import check_trained, folder_source, list_classes

EXTENSIONS = (".wav",)
TAKE = re.compile(r"[0-9]_[a-z]+_([0-9]+)\.wav")  # spoken_digit: digit, speaker, take
TEST_TAKES = 5  # its corpus's own convention: takes 0 to 4 of each speaker and digit are for testing


def read_sounds(builder, splits, labelled):
    """Splits of a TFDS data set with a feature "audio", as one or two `Examples`, of lengths as they are."""
    held_out = builder.name == "spoken_digit" and len(splits) == 1
    parts = [_read_split(builder, split, labelled, with_takes=held_out) for split in splits]
    if not held_out:
        return [examples for examples, _ in parts]
    examples, takes = parts[0]
    return [examples.take(np.flatnonzero(takes >= TEST_TAKES)), examples.take(np.flatnonzero(takes < TEST_TAKES))]


def _read_split(builder, split, labelled, with_takes):
    """`Examples`, and the number of each one's take."""
    import tensorflow_datasets as tfds

    sounds, labels, takes = [], [], []
    dataset = builder.as_dataset(split=split, read_config=tfds.ReadConfig(try_autocache=False))
    for example in dataset.as_numpy_iterator():
        sounds.append(_to_float(example["audio"]))
        if labelled:
            labels.append(example["label"])
        if with_takes:
            takes.append(_take(example["audio/filename"].decode("utf-8")))
    if not sounds:
        raise ValueError(f'The split "{split}" of "{builder.name}" is empty.')
    return Examples({"audio": _ragged(sounds)}, np.array(labels, "int32") if labelled else None), np.array(takes)


def _take(name):
    match = TAKE.fullmatch(name)
    if not match:
        raise ValueError(f'The names of "spoken_digit" must be `digit_speaker_take.wav`. Received: {name!r}')
    return int(match[1])


def _to_float(audio):
    """Samples `(T,)` or `(T, channels)` of 16 bits, or floats in [-1, 1], as float32 `(T,)`."""
    audio = audio if audio.dtype.kind == "f" else audio / 32768.0
    return (audio.mean(axis=1) if audio.ndim == 2 else audio).astype("float32")


def read_sound_folder(path):
    """Read a folder of WAV files as a `Source`; classes and splits are those of `read_folder`."""
    parts, listed, class_names = list_classes(path, EXTENSIONS, "WAV files")
    check_trained(parts[0], listed[0], class_names)
    read = [[read_wav(file) for file, _ in files] for files in listed]
    rates = {rate for sounds in read for _, rate in sounds}
    if len(rates) > 1:
        raise ValueError(f"WAV files must all be of one sample rate. Received: {sorted(rates)} in {path}")
    arrays = [_ragged([audio for audio, _ in sounds]) for sounds in read]
    return folder_source(path, "audio", arrays, listed, class_names, sample_rate=rates.pop())


def _ragged(sounds):
    """Sounds of any lengths as one array of objects, which can be indexed."""
    array = np.empty(len(sounds), object)
    for i, sound in enumerate(sounds):  # at once, sounds of one length would become a table
        array[i] = sound
    return array


def even(train, test, *, length=None, normalize=True, copies=1, seed=0):
    """Bring the sounds of two `Examples` to one length, and add copies of those for training, see `augment`.

    Args:
        train, test: `Examples` of sounds as they were read.
        length: in samples; None: that of the longest of `train`.
        normalize: scale each so that its largest sample is 1 or -1.
        copies: of each sound for training, itself included.
        seed: integer: of the copies.

    Returns:
        Training and test `Examples`, with "audio" float32 `(N, T, 1)`.
    """
    if length is None:
        length = max(map(len, train.features["audio"]))
    results = []
    for examples, number in ((train, copies), (test, 1)):
        sounds = [fit_length(sound, length) for sound in examples.features["audio"]]
        audio = np.stack([normalize_peak(sound) for sound in sounds] if normalize else sounds)[..., None]
        labels = None if examples.labels is None else np.repeat(examples.labels, number)
        results.append(Examples({"audio": augment(audio, number, seed)}, labels))
    return results
