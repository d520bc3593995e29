"""What the commands of several modalities read and write: images, sounds and texts, by the kind of each modality."""

from pathlib import Path

import numpy as np

from keras_vqdit.saving import atomic_path

# === What is given ===


def kind_of(model, name):
    """`"image"`, `"audio"` or `"text"`: how a modality is read and written."""
    kind = getattr(model.tokenizers[name], "modality", name)
    if kind not in WRITERS:
        raise ValueError(f"The command line knows {', '.join(WRITERS)}. Received: {name}, of the kind {kind!r}")
    return kind


def read_given(model, settings, count=1, other_than=None):
    """`["text=a seven", "image=seven.png"]` as a dict of one example, repeated; `other_than` comes by an option of its own."""
    given = {}
    for setting in settings or ():
        name, equals, value = setting.partition("=")
        if not equals or name not in model.modalities or name in given:
            raise ValueError(
                f"--given must be NAME=VALUE, with each NAME of {', '.join(model.modalities)} at most once. "
                f"Received: {setting!r}"
            )
        if name == other_than:
            raise ValueError(f"--given must be of other modalities than --{name}. Received: {setting!r}")
        one = read(model, name, value)
        given[name] = one * count if isinstance(one, list) else np.repeat(one, count, axis=0)
    return given


def read_candidates(model, settings):
    """The modality of the candidates, `NAME=VALUE` or texts, and a list of them."""
    names = [setting.partition("=")[0] if "=" in setting else None for setting in settings]
    names = {name if name in model.modalities else "text" for name in names}
    if len(names) > 1 or not names <= set(model.modalities):
        raise ValueError(
            f"--candidates must be texts, or all be NAME=VALUE with one NAME of {', '.join(model.modalities)}. "
            f"Received: {' '.join(map(repr, settings))}"
        )
    name = names.pop()
    values = [read(model, name, setting.removeprefix(f"{name}=")) for setting in settings]
    return name, [value[0] if isinstance(value, list) else value for value in values]


def read(model, name, value):
    """One example of a modality: a list of a text, or the contents of a file as an array."""
    kind, tokenizer = kind_of(model, name), model.tokenizers[name]
    if kind == "text":
        return [value]
    if kind == "image":
        return read_image(value, tokenizer.example_shape)
    return read_sound(value, tokenizer.example_shape[0], getattr(tokenizer, "sample_rate", None))


def read_image(path, shape):
    """An image file as float32 `(1, H, W, C)` in [-1, 1], scaled and cut to the shape."""
    from keras_vqdit.data.folders import decode_image
    from keras_vqdit.data.images import scale, with_channels

    if not Path(path).is_file():
        raise ValueError(f"{path} is a folder, not a file" if Path(path).is_dir() else f"No such file: {path}")
    image = decode_image(Path(path), tuple(shape[:2]))
    if image is None:
        raise ValueError(f"{path} must be an image, such as a PNG file. Received: what can not be read as one")
    return scale(with_channels(image, shape[-1]))[None]


def read_sound(path, length, sample_rate=None):
    """A WAV file as float32 `(1, T, 1)`, of the length and loudness of the sounds that a model learns from."""
    from keras_vqdit.data.audio import fit_length, normalize_peak, read_wav

    sound, received = read_wav(path)
    if sample_rate is not None and received != sample_rate:
        raise ValueError(
            f"{path} must have {sample_rate} samples a second, as the model's sounds. Received: {received}"
        )
    return normalize_peak(fit_length(sound, length))[None, :, None]


# === What is drawn ===


SUFFIXES = {"image": ".png", "audio": ".wav", "text": ".txt"}


def files_of(kind, out, name, count):
    """The files that so many examples of a modality are written to: one each, and a figure; one of texts; or `out` itself."""
    if out.suffix == SUFFIXES[kind]:
        return [out]
    if kind == "text":
        return [out / f"{name}.txt"]
    if kind == "image":
        return [*(out / f"{name}-{i}.png" for i in range(count)), out / f"{name}s.png"]
    figure = "spectrograms.png" if name == "audio" else f"{name}-spectrograms.png"
    return [*(out / f"{name}-{i}.wav" for i in range(count)), out / figure]


def write_images(paths, images, tokenizer):
    import matplotlib.image

    from keras_vqdit import plotting

    paths, figure = paths[: len(images)], paths[len(images) :]
    for path, image in zip(paths, images, strict=True):
        pixels = np.round(127.5 * (np.clip(image, -1, 1) + 1)).astype("uint8")
        with atomic_path(path) as temporary:
            matplotlib.image.imsave(temporary, np.broadcast_to(pixels, (*pixels.shape[:2], 3)), format="png")
    for path in figure:
        plotting.image_grid(images, title="Drawn images", path=path)


def write_sounds(paths, sounds, tokenizer):
    from keras_vqdit import data, plotting

    sample_rate = getattr(tokenizer, "sample_rate", 8000)
    paths, figure = paths[: len(sounds)], paths[len(sounds) :]
    for path, sound in zip(paths, sounds, strict=True):
        data.write_wav(path, sound, sample_rate)
    for path in figure:
        plotting.spectrograms(sounds, sample_rate, labels=[p.name for p in paths], title="Drawn sounds", path=path)


def write_texts(paths, texts, tokenizer):
    lines = [one_line(text) for text in texts]
    for line in lines:
        print(line)
    with atomic_path(paths[0]) as temporary:
        Path(temporary).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


WRITERS = {"image": write_images, "audio": write_sounds, "text": write_texts}


def one_line(text):
    return " ".join(text.split())
