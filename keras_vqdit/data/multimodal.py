"""The multimodal digits: MNIST's images, spoken digits and captions, paired by the digit."""

import numpy as np

from keras_vqdit.checks import one_of
from keras_vqdit.data.captions import LANGUAGES, caption_tokenizer, captions_of
from keras_vqdit.data.catalog import read_tfds
from keras_vqdit.data.examples import Examples, Source

NAME = "multimodal_digits"
AUDIO_LENGTH = 6144  # 99 of 100 takes are shorter
AUDIO_COPIES = 8


def read_multimodal_digits(*, data_dir=None, download=False, size=None, channels=None, languages, text_tokenizer=None):
    """Banks of images, sounds as they were read, and captions as a `Source`.

    Training and test images are those of MNIST, and takes those of `spoken_digit`, whose takes 0 to 4 are for testing. The
    captions are the same for both: the grammar has few.
    """
    languages = [languages] if isinstance(languages, str) else list(languages)
    for language in languages or [None]:
        one_of("languages", language, LANGUAGES)
    tokenizer = caption_tokenizer() if text_tokenizer is None else text_tokenizer
    captions = [captions_of(digit, language) for digit in range(10) for language in languages]
    labels = np.repeat(np.arange(10, dtype="int32"), [sum(map(len, captions)) // 10] * 10)
    texts = Examples({"text": tokenizer.encode(sum(captions, []))}, labels)
    images = read_tfds("mnist", data_dir=data_dir, download=download, size=size, channels=channels)
    sounds = read_tfds("spoken_digit", data_dir=data_dir, download=download)
    banks = [
        {"image": image, "audio": sound, "text": texts}
        for image, sound in ((images.train, sounds.train), (images.test, sounds.test))
    ]
    return Source(
        NAME, *banks, class_names=images.class_names, sample_rate=sounds.sample_rate, text_tokenizer=tokenizer
    )
