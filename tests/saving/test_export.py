"""What is exported needs TensorFlow alone, and does as the model does."""

import importlib.util
import json
import logging
import subprocess
import sys

import keras
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import keras_vqdit as kv  # noqa: E402
from keras_vqdit.layers import nearest_code  # noqa: E402
from tests.models.test_audio_tokenizer import tiny  # noqa: E402
from tests.saving.test_presets import IMAGES, tokenizer  # noqa: E402

LATENTS = np.random.default_rng(1).normal(size=(7, 2, 2, 4)).astype("float32")

# Runs where neither this package nor Keras can be imported.
ALONE = """
import importlib.machinery
import sys

class Forbidden:  # TensorFlow asks where Keras is, which is no import yet
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("keras", "keras_vqdit"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        raise ImportError(f"{spec.name} is forbidden")

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Forbidden())
import numpy as np
import tensorflow as tf

folder, calls, results = sys.argv[1:]
calls = np.load(calls, allow_pickle=False)
signatures = tf.saved_model.load(folder).signatures
given = {}
for key in calls.files:
    call, endpoint, name = key.split("/")
    given.setdefault((call, endpoint), {})[name] = tf.constant(calls[key])
found = {}
for (call, endpoint), tensors in given.items():
    try:
        outputs = signatures[endpoint](**tensors)
    except Exception as error:
        outputs = {"error": tf.constant(str(error)[:300])}
    found.update({f"{call}/{name}": value.numpy() for name, value in outputs.items()})
assert not {"keras", "keras_vqdit"} & set(sys.modules)
np.savez(results, **found)
"""


def alone(folder, calls, tmp_path):
    """What an export answers to calls, `{name: (endpoint, {input: array})}`, in a process with TensorFlow alone."""
    flat = {
        f"{call}/{endpoint}/{name}": value for call, (endpoint, given) in calls.items() for name, value in given.items()
    }
    np.savez(tmp_path / "calls.npz", **flat)
    program = [sys.executable, "-c", ALONE, str(folder), str(tmp_path / "calls.npz"), str(tmp_path / "results.npz")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(tmp_path / "results.npz"))


def trained_diffusion(process=None, dtype=None, num_classes=3, **options):
    keras.utils.set_random_seed(0)
    network = kv.DiffusionTransformer(16, 2, 32, 1, num_classes=num_classes, dtype=dtype, **options)
    model = kv.LatentDiffusion(tokenizer(), network, process, ema_decay=0.9, dtype=dtype)
    data = {"image": IMAGES, **({"label": (np.arange(40) % 3).astype("int32")} if num_classes else {})}
    if options.get("context_dim"):
        data["context"] = np.random.default_rng(2).normal(size=(40, 5, options["context_dim"])).astype("float32")
    model.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    model.fit(data, batch_size=20, epochs=3, verbose=0)
    return model


def sampling(labels, seed=(0, 0), num_steps=4, guidance_scale=1.5, **more):
    return {
        "labels": np.asarray(labels, "int32"), "seed": np.asarray(seed, "int32"), "num_steps": np.int32(num_steps),
        "guidance_scale": np.float32(guidance_scale), **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    "process",
    [None, lambda: kv.GaussianDiffusion("cosine", "v", zero_terminal_snr=True, min_snr_gamma=5.0)],
    ids=["flow", "Gaussian"],
)
def test_every_endpoint_is_the_live_model(process, tmp_path):
    model = trained_diffusion(process and process())
    card = kv.saving.export(model, tmp_path / "export", card={"data": "noise"})
    t, label = np.linspace(0.1, 0.9, 7, dtype="float32"), (np.arange(7) % 4).astype("int32")
    codes = np.array(model.tokenizer.encode(IMAGES[:5]))
    calls = {
        "encode": ("encode", {"image": IMAGES[:5]}),
        "decode": ("decode", {"codes": codes}),
        "reconstruct": ("reconstruct", {"image": IMAGES[:5]}),
        "denoise": ("denoise", {"x": LATENTS, "t": t, "label": label}),
        "sample": ("sample", sampling([0, 1, 2])),
        "again": ("sample", sampling([0, 1, 2])),
        "another seed": ("sample", sampling([0, 1, 2], seed=(1, 0))),
        "more steps": ("sample", sampling([0, 1, 2], num_steps=9)),
        "one step": ("sample", sampling([0, 1, 2], num_steps=1)),
        "without guidance": ("serving_default", sampling([0, 1, 2], guidance_scale=1.0)),
        "batch of 1": ("sample", sampling([2])),
        "batch of 33": ("sample", sampling(np.arange(33) % 3)),
        "the second half": ("sample", sampling(np.arange(33)[20:] % 3, seed=(0, 20))),
        "no label": ("sample", sampling([3, 3], guidance_scale=1.0)),
        "a label too many": ("sample", sampling([4])),
        "no steps": ("sample", sampling([1], num_steps=0)),
        "too many steps": ("sample", sampling([1], num_steps=251)),
        "an infinite scale": ("sample", sampling([1], guidance_scale=np.inf)),
        "a time too late": ("denoise", {"x": LATENTS, "t": 500 * t, "label": label}),
        "too few times": ("denoise", {"x": LATENTS, "t": t[:1], "label": label}),
        "four images in one": ("encode", {"image": np.zeros((1, 16, 16, 1), "float32")}),
        "a code too many": ("decode", {"codes": codes + 16}),
        "decoded latents": ("decode_latents", {"latents": LATENTS}),
    }
    results = alone(tmp_path / "export", calls, tmp_path)

    def live(labels, **options):
        options = {"num_steps": 4, "guidance_scale": 1.5, "seed": 0, "verbose": 0, **options}
        return model.generate(labels, **options)

    expected = {
        "encode/codes": codes,
        "decode/image": model.tokenizer.decode(codes),
        "reconstruct/image": model.tokenizer(IMAGES[:5])[0],
        "sample/image": live([0, 1, 2]),
        "again/image": live([0, 1, 2]),
        "another seed/image": live([0, 1, 2], seed=1),
        "more steps/image": live([0, 1, 2], num_steps=9),
        "one step/image": live([0, 1, 2], num_steps=1),
        "without guidance/image": live([0, 1, 2], guidance_scale=1.0),
        "batch of 1/image": live([2]),
        "batch of 33/image": live(np.arange(33) % 3),
        "the second half/image": live(np.arange(33) % 3)[20:],
        "no label/image": live(None, num_samples=2, guidance_scale=1.0),
    }
    for key, value in expected.items():
        np.testing.assert_allclose(results[key], value, atol=1e-5, err_msg=key)
    prediction = model.ema_transformer({"x": LATENTS, "t": model.process.network_time(t), "label": label})
    np.testing.assert_allclose(results["denoise/prediction"], prediction, atol=1e-5)
    np.testing.assert_allclose(results["denoise/clean"], model.process.denoised(LATENTS, prediction, t)[0], atol=1e-5)
    assert np.abs(results["another seed/image"] - results["sample/image"]).max() > 0.01
    assert "`labels` must be from 0 to 3" in str(results["a label too many/error"])
    for key in ("no steps", "too many steps"):
        assert "`num_steps` must be from 1 to 250" in str(results[f"{key}/error"])
    assert "`guidance_scale` must be finite" in str(results["an infinite scale/error"])
    assert "`t` must be from 0.0 to 1.0" in str(results["a time too late/error"])
    assert "must have equally many examples" in str(results["too few times/error"])
    assert "`image` must be of shape [any, 8, 8, 1]" in str(results["four images in one/error"])
    assert "`codes` must be from 0 to 15" in str(results["a code too many/error"])
    expected = np.clip(model.tokenizer.decode_latents(LATENTS), -1, 1)
    np.testing.assert_allclose(results["decoded latents/image"], expected, atol=1e-5)
    levels = card["signatures"]["denoise"]["levels"]  # with which a step can be made
    np.testing.assert_allclose(levels["t"], model.process.times(20), atol=1e-6)
    np.testing.assert_allclose(levels["sigma"], model.process.alpha_sigma(np.array(levels["t"]))[1], atol=1e-5)

    assert json.loads((tmp_path / "export" / "model_card.json").read_text()) == card
    assert card["data"] == "noise" and card["signatures"]["sample"]["inputs"]["seed"] == {
        "shape": [2],
        "dtype": "int32",
    }
    assert card["signatures"]["sample"]["inputs"]["num_steps"] == {
        "shape": [], "dtype": "int32", "minimum": 1, "maximum": 250,
    }  # fmt: skip
    lines = kv.saving.inspect(tmp_path / "export")  # whose calls can be copied
    names = {"tf": tf, "model": tf.saved_model.load(str(tmp_path / "export"))}
    found = [eval(line, names) for line in lines if line.startswith("  model.signatures")]
    assert len(found) == 6 and all(len(one.shape) > 1 for one in found)
    kept = [*model.tokenizer.weights, *model.ema_transformer.weights]
    assert (
        0 < card["parameter_count"] <= sum(np.prod(weight.shape) for weight in kept)
    )  # not the weights beside the average


def test_float32_in_and_out_whatever_the_policy(tmp_path):
    model = trained_diffusion(dtype="mixed_bfloat16")
    card = kv.saving.export(model, tmp_path / "export")
    dtypes = {spec["dtype"] for one in card["signatures"].values() for spec in one["outputs"].values()}
    assert dtypes == {"float32", "int32"}
    results = alone(tmp_path / "export", {"sample": ("sample", sampling([0, 1, 2]))}, tmp_path)
    expected = model.generate([0, 1, 2], num_steps=4, guidance_scale=1.5, seed=0, verbose=0)
    np.testing.assert_allclose(results["sample/image"], expected, atol=0.05)


@pytest.mark.slow
def test_a_context(tmp_path):
    model = trained_diffusion(num_classes=None, context_dim=6)
    kv.saving.export(model, tmp_path / "context")
    context = np.random.default_rng(3).normal(size=(2, 4, 6)).astype("float32")
    given = sampling([0], context=context, context_mask=np.array([[True] * 4, [True, False, True, False]]))
    del given["labels"]
    results = alone(tmp_path / "context", {"sample": ("sample", given)}, tmp_path)
    conditions = {"context": context, "context_mask": given["context_mask"]}
    expected = model.generate(num_steps=4, guidance_scale=1.5, seed=0, verbose=0, **conditions)
    np.testing.assert_allclose(results["sample/image"], expected, atol=1e-5)


def test_no_labels(tmp_path):
    model = trained_diffusion(num_classes=None)
    kv.saving.export(model, tmp_path / "plain")
    given = {**sampling([0], guidance_scale=1.0), "num_samples": np.int32(3)}
    del given["labels"]
    results = alone(tmp_path / "plain", {"sample": ("sample", given)}, tmp_path)
    expected = model.generate(num_samples=3, num_steps=4, seed=0, verbose=0)
    np.testing.assert_allclose(results["sample/image"], expected, atol=1e-5)


@pytest.mark.slow  # names and options of the sampler; what it draws is compared for the others in any run
def test_another_sampler(tmp_path):
    model = trained_diffusion()
    options = {"sampler": "heun", "guidance_interval": (0.2, 0.9)}
    card = kv.saving.export(model, tmp_path / "export", **options)
    assert card["signatures"]["sample"]["sampler"] == "heun"
    results = alone(tmp_path / "export", {"sample": ("sample", sampling([0, 1, 2]))}, tmp_path)
    expected = model.generate([0, 1, 2], num_steps=4, guidance_scale=1.5, seed=0, verbose=0, **options)
    np.testing.assert_allclose(results["sample/image"], expected, atol=1e-5)


class Doubling(keras.Model):
    """A model with an endpoint of its own."""

    def __init__(self, name="double", given="value"):
        super().__init__()
        self.names, self.built = (name, given), True

    def endpoints(self):
        name, given = self.names
        double = lambda **tensors: {"doubled": 2 * tensors[given]}  # noqa: E731
        return {name: kv.saving.Endpoint(double, {given: ((None,), "float32")}, "doubles")}


def test_endpoints_of_others(tmp_path):
    kv.saving.export(Doubling(), tmp_path / "export")
    results = alone(tmp_path / "export", {"a": ("serving_default", {"value": np.ones(3, "float32")})}, tmp_path)
    np.testing.assert_array_equal(results["a/doubled"], 2.0)
    with pytest.raises(ValueError, match="must have endpoints among encode"):
        kv.saving.export(Doubling(), tmp_path / "lite", format="litert")
    for name in ("my image", "class", "self", "x/y"):
        with pytest.raises(ValueError, match="must have names that Python can write"):
            kv.saving.export(Doubling(given=name), tmp_path / "other")
    with pytest.raises(TypeError, match="`model` must have endpoints"):
        kv.saving.export(kv.VQVAE, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["export"]


def test_a_vae(tmp_path):
    model = kv.VAE.from_size("digits", input_shape=(8, 8, 1), filters=(8, 8), residual_filters=4)
    kv.saving.export(model, tmp_path / "export")
    results = alone(
        tmp_path / "export",
        {"encode": ("encode", {"image": IMAGES}), "r": ("serving_default", {"image": IMAGES})},
        tmp_path,
    )
    np.testing.assert_allclose(results["encode/latents"], model.encode(IMAGES), atol=1e-5)
    np.testing.assert_allclose(results["r/image"], model(IMAGES)[0], atol=1e-5)


def check_files(model, run):
    """What `run(name, **arrays)` gives is what the live model gives."""
    for count in (1, 33):
        codes = np.array(model.tokenizer.encode(IMAGES[:count]))
        np.testing.assert_array_equal(run("encode", image=IMAGES[:count])["codes"], codes)
        image = run("decode", codes=codes)["image"]
        np.testing.assert_allclose(image, model.tokenizer.decode(codes), atol=1e-5)
    given = {"x": LATENTS[:3], "t": np.full(3, 0.5, "float32"), "label": np.arange(3, dtype="int32")}
    expected = model.ema_transformer(given)
    np.testing.assert_allclose(run("denoise", **given)["prediction"], expected, atol=1e-5)
    drawn = run("decode_latents", latents=LATENTS)["image"]
    np.testing.assert_allclose(drawn, np.clip(model.tokenizer.decode_latents(LATENTS), -1, 1), atol=1e-5)


def test_litert(tmp_path, monkeypatch):
    monkeypatch.setattr(nearest_code, "TILE_SIZE", 64)
    model = trained_diffusion()
    kv.saving.export(model, tmp_path / "lite", format="litert")
    assert {path.name for path in (tmp_path / "lite").iterdir()} == {
        "encode.tflite", "decode.tflite", "decode_latents.tflite", "denoise.tflite", "model_card.json",
    }  # fmt: skip

    def run(name, **given):
        return tf.lite.Interpreter(str(tmp_path / "lite" / f"{name}.tflite")).get_signature_runner()(**given)

    check_files(model, run)


def test_onnx(tmp_path, monkeypatch):
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(nearest_code, "TILE_SIZE", 64)  # several chunks of vectors, as large batches need
    model = trained_diffusion()
    kv.saving.export(model, tmp_path / "onnx", format="onnx")
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {
        "encode.onnx", "decode.onnx", "decode_latents.onnx", "denoise.onnx", "model_card.json",
    }  # fmt: skip

    def run(name, **given):
        session = onnxruntime.InferenceSession(tmp_path / "onnx" / f"{name}.onnx")
        names = [one.name for one in session.get_outputs()]
        return dict(zip(names, session.run(None, given), strict=True))

    check_files(model, run)
    lines = [line for line in kv.saving.inspect(tmp_path / "onnx") if line.startswith("  onnxruntime.")]
    names = {"onnxruntime": onnxruntime, "np": np}
    assert len(lines) == 4 and all(eval(line, names).size for line in lines)


@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_what_a_converter_does_not_know_is_told_and_the_rest_can_be_written(format, tmp_path):
    pytest.importorskip("tf2onnx")
    model = tiny()  # its spectrograms are Fourier transforms
    with pytest.raises(ValueError, match="can not convert `(en|de)code` of this model: it has no .*(Complex|RFFT)"):
        kv.saving.export(model, tmp_path / "sound", format=format)
    assert not (tmp_path / "sound").exists()
    text = kv.TextTokenizer.train(["abab"], max_length=4)
    several = kv.MultimodalDiffusion({"audio": model, "text": text}, 16, 2, num_layers=1, seed=0)
    card = kv.saving.export(several, tmp_path / "network", format=format, only=["denoise"])
    suffix = {"litert": "tflite", "onnx": "onnx"}[format]
    assert {path.name for path in (tmp_path / "network").iterdir()} == {f"denoise.{suffix}", "model_card.json"}
    assert card["signatures"]["denoise"]["text_codes"].startswith("0 ends a text; 1 is unknown; code n is entry n - 2")
    with pytest.raises(ValueError, match="`only` must be of the endpoints encode_audio, .*Received: sample"):
        kv.saving.export(several, tmp_path / "network", format=format, only=["sample"])


@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_files_of_several_modalities(format, tmp_path):
    """All endpoints without loops: those of every tokenizer with weights, by its name, and the network."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    text = kv.TextTokenizer.train(["abab"], max_length=4)
    model = kv.MultimodalDiffusion({"image": tokenizer(), "text": text}, 16, 2, num_layers=1, seed=0)
    rng = np.random.default_rng(0)
    for weight in model.ema_transformer.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.3)
    model.ema_steps.assign(1.0)
    kv.saving.export(model, tmp_path / "files", format=format)
    suffix = {"litert": "tflite", "onnx": "onnx"}[format]
    names = {"encode_image", "decode_image", "denoise"}
    assert {path.name for path in (tmp_path / "files").iterdir()} == {
        *(f"{name}.{suffix}" for name in names), "model_card.json",
    }  # fmt: skip

    def run(name, **given):
        path = tmp_path / "files" / f"{name}.{suffix}"
        if format == "litert":
            return tf.lite.Interpreter(str(path)).get_signature_runner()(**given)
        session = onnxruntime.InferenceSession(path)
        return dict(zip([one.name for one in session.get_outputs()], session.run(None, given), strict=True))

    x = rng.uniform(-1, 1, (3, *model.tokenizers["image"].example_shape)).astype("float32")
    codes = np.array(model.tokenizers["image"].encode(x)).astype("int32")
    np.testing.assert_array_equal(run("encode_image", image=x)["codes"], codes)
    given = {"image": codes, "text": text.encode(["a", "ab", "b"])}
    given["image"][:, 0] = model.mask_codes["image"]
    expected = model.network(given, training=False)
    found = run("denoise", **given)
    for name, logits in expected.items():
        np.testing.assert_allclose(found[f"{name}_logits"], logits, atol=1e-4)


def test_what_converters_do_not_know(tmp_path, monkeypatch):
    tf2onnx = pytest.importorskip("tf2onnx")

    def fail(*args, **kwargs):
        raise NotImplementedError("no such operation: Swirl")

    monkeypatch.setattr(tf2onnx.convert, "from_function", fail)
    with pytest.raises(
        ValueError, match=r"tf2onnx \S+ can not convert `encode` of this model: no such operation: Swirl"
    ):
        kv.saving.export(tokenizer(), tmp_path / "onnx", format="onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "keras_vqdit\[onnx\]"'):
        kv.saving.export(tokenizer(), tmp_path / "onnx", format="onnx")
    assert not (tmp_path / "onnx").exists()


def test_nothing_is_said_of_folders_that_are_gone_in_the_end(tmp_path, caplog):
    logger = tf.get_logger()
    level = logger.level
    logger.addHandler(caplog.handler)
    logger.setLevel("INFO")  # as in notebooks
    try:
        kv.saving.export(tokenizer(), tmp_path / "exported", only=["decode"])
        assert logger.level == logging.INFO
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)
    assert caplog.messages == []


def test_errors(tmp_path):
    model = tokenizer()
    with pytest.raises(
        ValueError, match="`format` must be one of 'tf_saved_model', 'litert', 'onnx'. Received: format='torch'"
    ):
        kv.saving.export(model, tmp_path / "a", format="torch")
    with pytest.raises(
        TypeError, match="`model` must have endpoints, as VQVAE, VAE, LatentDiffusion and MultimodalDiffusion do"
    ):
        kv.saving.export(keras.Sequential([keras.layers.Dense(1)]), tmp_path / "a")
    with pytest.raises(ValueError, match="The model must be built before it is exported"):
        kv.saving.export(kv.LatentDiffusion(None, kv.DiffusionTransformer(16, 2, 32, 1)), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something else"):
        kv.saving.export(model, tmp_path / "b")
    with pytest.raises(ValueError, match="`card` must leave .* to the export. Received: model"):
        kv.saving.export(model, tmp_path / "a", card={"model": "digits v2"})
    for card in (["a"], {"score": object()}, {"deep": json.loads("[" * 70 + "]" * 70)}):
        with pytest.raises(ValueError, match="`card` must"):
            kv.saving.export(model, tmp_path / "a", card=card)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
