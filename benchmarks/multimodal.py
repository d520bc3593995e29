"""Any to any on the multimodal digits: every task drawn from test data, and judged by classifiers of real images and speech.

Prints the share of each task that the judges recognise as what was given, BLEU, ROUGE-L and CIDEr of the captions, recall@1 of
retrieval, and nats a code of the test data. Draws a figure for each task, and writes WAV files of what was spoken.

Run: python -m benchmarks multimodal --data-dir FOLDER [--preset multimodal_digits] [--out FOLDER]

--judge-codes shows instead what the codes of images tell a convolutional classifier, all of them and those that infilling sees.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np
from keras import layers

from keras_vqdit import data, plotting, saving, tasks
from keras_vqdit.data.captions import LANGUAGES, captions_of, digit_of
from keras_vqdit.metrics import caption_scores, recall_at_k, train_classifier, train_speech_classifier
from keras_vqdit.models import MultimodalDiffusion
from keras_vqdit.recipes import to_arrays
from keras_vqdit.recipes_multimodal import measure_multimodal

# What is asked for, and how figures call it: Matplotlib's font has no Chinese.
ASKED = {
    "a handwritten zero": "",
    "the digit 1": "",
    "die Ziffer 2": "",
    "eine Drei in Handschrift": "",
    "数字4": "Chinese: digit 4",
}
ASKED |= {
    "手写数字五": "Chinese: digit five",
    "number six": "",
    "eine handgeschriebene Sieben": "",
    "this is an eight": "",
}
ASKED |= {"一个手写的九": "Chinese: a nine"}


def make_judges(folder, data_dir, verbose):
    """Classifiers of real images and of real speech, trained where the folder does not have them yet."""
    judges = []
    for name, source, train_judge, options in (
        ("image", "mnist", train_classifier, {}),
        ("speech", "spoken_digit", train_speech_classifier, {"audio_length": 6144}),
    ):
        path = folder / f"{name}-judge.keras"
        if not path.exists():
            begin = time.perf_counter()
            train, test = data.load(source, data_dir=data_dir, batch_size=128 if name == "image" else 64, **options)
            judge, accuracy = train_judge(train, test, verbose=verbose)
            saving.save_model(judge, path)
            seconds = time.perf_counter() - begin
            print(f"the judge of {name}: {100 * accuracy:.2f} % of real test data, {seconds:.0f} s", flush=True)
        judges.append(saving.load_model(path))
    return judges


def examples_of_digits(test, name):
    """A test example of each digit from 0 to 9."""
    label = to_arrays(test, "label", limit=1000)
    return to_arrays(test, name, limit=1000)[[np.flatnonzero(label == digit)[0] for digit in range(10)]]


def measure_captions(model, test, num_samples, options):
    """Captions of images, compared with all captions of the grammar for their digit, in the language of what was drawn."""
    images, label = (to_arrays(test, name, limit=num_samples) for name in ("image", "label"))
    drawn = tasks.image_to_text(model, images, **options)
    references = []
    for text, digit in zip(drawn, label, strict=True):
        own = [one for one in LANGUAGES if any(text in captions_of(each, one) for each in range(10))]
        references.append(captions_of(digit, own[0] if own else "en"))
    return caption_scores(drawn, references)


def measure_retrieval(model, test, rounds=10):
    """Recall@1: of ten images, sounds or captions, one a digit, the one that goes with what is given; over several rounds."""
    arrays = {name: to_arrays(test, name, limit=1000) for name in ("image", "audio")}
    label, found = to_arrays(test, "label", limit=1000), {}
    places = [np.flatnonzero(label == digit) for digit in range(10)]
    for given, want in (
        ("text", "image"),
        ("image", "text"),
        ("text", "audio"),
        ("audio", "image"),
        ("image", "audio"),
    ):
        recalls = []
        for n in range(rounds):
            choose = {name: array[[place[n] for place in places]] for name, array in arrays.items()}
            choose["text"] = [captions_of(digit, LANGUAGES[n % 3])[n % 8] for digit in range(10)]
            _, scores = tasks.retrieve(model, {given: choose[given]}, {want: choose[want]}, num_samples=4, seed=n)
            recalls.append(recall_at_k(scores, 1))
        found[f"{given} -> {want}"] = float(np.mean(recalls))
    return found


def judge_codes(tokenizer, data_dir, rows=None, epochs=2, verbose=2):
    """The share of MNIST's test images whose digit a convolutional classifier tells by their codes, or by those of some rows.

    It learns of the same codes as the model and of nothing else, so it shows what can be told by them.
    """
    keras.utils.set_random_seed(0)
    loaded = data.load("mnist", data_dir=data_dir, batch_size=128)
    train, test = (
        data.encode_codes(part, tokenizer).map(lambda batch: (batch["codes"][:, :rows], batch["label"]))
        for part in loaded
    )
    inputs = keras.Input(train.element_spec[0].shape[1:], dtype="int32")
    x = layers.Embedding(tokenizer.num_embeddings, 64)(inputs)
    for filters in (96, 96, 128, 128):
        x = layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same", activation="relu")(x))
    classifier = keras.Model(inputs, layers.Dense(10)(layers.Dropout(0.3)(layers.Flatten()(x))))
    rates = keras.optimizers.schedules.CosineDecay(3e-3, epochs * len(train))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.AdamW(rates), loss, metrics=["accuracy"], jit_compile=False)
    classifier.fit(train, epochs=epochs, shuffle=False, verbose=verbose)  # the data set shuffles by itself
    return classifier.evaluate(test, verbose=0, return_dict=True)["accuracy"]


def draw_figures(model, test, out, options):
    """A figure a task, and WAV files."""
    images, sounds = examples_of_digits(test, "image"), examples_of_digits(test, "audio")
    rate = model.tokenizers["audio"].sample_rate

    def grid(path, rows, title, columns=None):
        plotting.image_grid(
            np.stack([*rows.values()]), row_labels=[*rows], column_labels=columns, title=title, path=out / path
        )

    asked, said = list(ASKED), [name or text for text, name in ASKED.items()]
    short = [name.replace(" ", "\n") for name in said]
    several = [tasks.text_to_image(model, asked, **{**options, "seed": seed}) for seed in range(4)]
    grid("text_to_image.png", dict(enumerate(several)), "Captions to images", short)
    several = [tasks.speech_to_image(model, sounds, **{**options, "seed": seed}) for seed in range(4)]
    grid("speech_to_image.png", dict(enumerate(several)), "Spoken digits to images", range(10))
    lower = np.repeat((np.arange(28) >= 14)[:, None], 28, axis=1)
    rows = {"given": images, "kept": np.where(lower[..., None], np.float32(0), images)}
    for seed in range(3):
        rows[f"drawn {seed + 1}"] = tasks.infill_image(model, images, lower, **{**options, "seed": seed})
    grid("infilled.png", rows, "The lower half drawn anew")
    for name, spoken, labels in (
        ("text_to_speech", tasks.text_to_speech(model, asked, **options), said),
        ("image_to_speech", tasks.image_to_speech(model, images, **options), [f"an image of {i}" for i in range(10)]),
    ):
        title = name.replace("_", " ").capitalize()
        plotting.spectrograms(spoken, rate, columns=5, labels=labels, title=title, path=out / f"{name}.png")
        for digit, sound in enumerate(spoken):
            data.write_wav(out / f"{name}-{digit}.wav", sound, rate)
    joint = tasks.sample_jointly(model, 10, want=["text", "image", "audio"], **options)
    told = [text if text.isascii() else f"Chinese: {digit_of(text)}" for text in joint["text"]]
    plotting.image_grid(
        joint["image"],
        rows=1,
        column_labels=[text.replace(" ", "\n") for text in told],
        title="Drawn together",
        path=out / "joint.png",
    )
    plotting.spectrograms(
        joint["audio"], rate, columns=5, labels=told, title="Drawn together", path=out / "joint_speech.png"
    )
    captions = {"together": joint["text"]}
    captions |= {"image": tasks.image_to_text(model, images, **options)}
    captions["speech"] = tasks.speech_to_text(model, sounds, **options)
    captions["a handwritten"] = tasks.complete_text(model, ["a handwritten"] * 10, **options)
    captions["die Ziffer"] = tasks.complete_text(model, ["die Ziffer"] * 10, **options)
    for name, texts in captions.items():
        print(f"{name}: {', '.join(texts)}", flush=True)
    return captions


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks multimodal", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", help="folder of the TFDS data sets (default: TFDS's own)")
    parser.add_argument("--preset", default="multimodal_digits", help="name or folder (default: %(default)s)")
    parser.add_argument("--model", help="a .keras file, instead of a preset")
    parser.add_argument("--out", type=Path, default=Path("any_to_any"), help="folder (default: %(default)s)")
    parser.add_argument("--num-samples", type=int, default=500, help="of each task (default: %(default)s)")
    parser.add_argument("--num-steps", type=int, default=16, help="of the sampler (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=1.5, help="1 is off (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.9, help="of what is drawn (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--judge-codes",
        action="store_true",
        help="only show what a classifier can tell by the codes of images, and of 3 rows",
    )
    parser.add_argument("--verbose", type=int, default=2, help="of the judges' training (default: %(default)s)")
    options = parser.parse_args(argv)

    expected = MultimodalDiffusion
    model = (
        saving.load_model(options.model, expected) if options.model else saving.load_preset(options.preset, expected)
    )
    model.compile()  # for `evaluate`
    if options.judge_codes:
        for rows in (None, 3):
            share = judge_codes(model.tokenizers["image"], options.data_dir, rows, verbose=options.verbose)
            print(f"told by {'all codes' if rows is None else f'the codes of {rows} rows'}: {share:.4f}", flush=True)
        return
    caption_scores(["a seven"], [["a seven"]])  # raises now, not after minutes, where its libraries are not installed
    options.out.mkdir(parents=True, exist_ok=True)
    judges = make_judges(options.out, options.data_dir, options.verbose)
    text = model.tokenizers["text"]
    _, test = data.load(
        "multimodal_digits",
        data_dir=options.data_dir,
        batch_size=250,
        image_size=model.tokenizers["image"].example_shape[:2],
        audio_length=model.tokenizers["audio"].example_shape[0],
        audio_copies=1,
        text_tokenizer=text,
    )
    drawing = {name: getattr(options, name) for name in ("num_steps", "temperature", "guidance_scale", "seed")}
    drawing |= {"verbose": 0, "jit_compile": True}
    draw_figures(model, test, options.out, drawing)
    found = measure_multimodal(model, test, *judges, num_samples=options.num_samples, **drawing)
    found["captions"] = measure_captions(model, test, options.num_samples, drawing)
    found["recall_at_1"] = measure_retrieval(model, test)
    found["nats"] = model.evaluate(data.encode_codes(test, dict(model.tokenizers)), verbose=0, return_dict=True)
    found["options"] = drawing
    print(json.dumps(found, indent=1))
    (options.out / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
