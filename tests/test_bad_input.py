"""Bad input is told where the user made the mistake: no nonsense result, no long work before the error, no lost file."""

import keras
import numpy as np
import pytest

import keras_vqdit as kv
from keras_vqdit import cli, data, plotting, recipes, saving
from keras_vqdit.diffusion import sample
from keras_vqdit.layers import Downsample, Upsample
from keras_vqdit.layers.embeddings import LabelEmbedding, TimeEmbedding
from keras_vqdit.metrics import PSNR, build_classifier, features, kernel_distance, train_classifier

NAN, INF = float("nan"), float("inf")


def f32(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")


def examples(n=16, size=8, **more):
    return {"image": f32(n, size, size, 1), "label": (np.arange(n) % 3).astype("int32"), **more}


def tokenizer(cls=kv.VQVAE, **options):
    return cls.from_size("digits", input_shape=(8, 8, 1), filters=(4, 4), residual_filters=2, **options)


def network():
    return kv.DiffusionTransformer(8, 1, 8, 1, num_classes=3)


@pytest.fixture(scope="module")
def pixels():
    model = kv.LatentDiffusion(None, network())
    model(examples())
    model.compile("sgd")
    return model


@pytest.fixture(scope="module")
def latents():
    model = kv.LatentDiffusion(tokenizer(), network())
    model(examples())
    model.compile("sgd")
    return model


# === Arguments ===


@pytest.mark.parametrize("value", [NAN, INF, -1, "a", None])
@pytest.mark.parametrize(
    "make, name",
    [
        (lambda v: kv.VectorQuantizer(8, 4, commitment_cost=v), "commitment_cost"),
        (lambda v: kv.VectorQuantizer(8, 4, epsilon=v), "epsilon"),
        (lambda v: tokenizer(kv.VAE, kl_weight=v), "kl_weight"),
        (lambda v: kv.RectifiedFlow(scale=v), "scale"),
        (lambda v: kv.RectifiedFlow(shift=v), "shift"),
        (lambda v: TimeEmbedding(8, time_scale=v), "time_scale"),
        (lambda v: kv.MultiHeadAttention(2, 8, dropout=v), "dropout"),
        (lambda v: kv.TransformerBlock(8, 2, 8, v), "rate"),
        (lambda v: kv.LatentDiffusion(None, network(), label_dropout=v), "label_dropout"),
        (lambda v: PSNR(max_range=v), "max_range"),
        (lambda v: data.load(examples(), test_fraction=v), "test_fraction"),
    ],
)
def test_a_number_out_of_range_or_none_at_all(make, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number, .*Received: {name}="):
        make(value)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(
    "make", [lambda v: kv.RectifiedFlow(location=v), lambda v: kv.GaussianDiffusion(min_snr_gamma=v)]
)
def test_an_infinite_number(make, value):
    with pytest.raises(ValueError, match="must be a finite number"):
        make(value)


# === Layers ===


@pytest.mark.parametrize("shape", [(3, 2), (2, 5), (2,), (1, 3)])
def test_a_mask_of_another_shape(shape):
    quantizer = kv.VectorQuantizer(8, 4)
    for use in (quantizer, quantizer.encode):
        with pytest.raises(ValueError, match="`mask` must have the shape of `z` without its last axis"):
            use(f32(2, 3, 4), mask=np.ones(shape, bool))


def test_a_mask_counts_as_bool():
    quantizer = kv.VectorQuantizer(8, 4, seed=0)
    z = f32(2, 3, 4)
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    expected = quantizer(z, mask=mask.astype(bool))
    for same in (mask.tolist(), mask * 0.5, -1.0 * mask):
        for a, b in zip(quantizer(z, mask=same), expected):
            np.testing.assert_array_equal(a, b)


def test_attention_checks_what_comes_after_it_was_built():
    alone, cross = kv.MultiHeadAttention(2, 8), kv.MultiHeadAttention(2, 8)
    alone(f32(2, 3, 8))
    cross(f32(2, 3, 8), f32(2, 5, 8))
    for query in (f32(2, 8), f32(2, 3, 3, 8)):
        with pytest.raises(ValueError, match=r"`query` must be of shape \(B, length, channels\)"):
            alone(query)
    with pytest.raises(ValueError, match="`value` must come with a `key`"):
        alone(f32(2, 3, 8), None, f32(2, 3, 8))
    with pytest.raises(ValueError, match="`value` must have as many positions as `key`"):
        cross(f32(2, 3, 8), f32(2, 5, 8), f32(2, 6, 8))
    with pytest.raises(ValueError, match="`mask` must be bool or integers, true where a key counts"):
        alone(f32(2, 3, 8), mask=np.zeros((2, 3), "float32"))


def test_a_condition_of_another_batch_or_rank():
    block = kv.TransformerBlock(8, 2, 8, conditioning="adaln_zero")
    block(f32(2, 3, 8), f32(2, 8))
    for shape in ((3, 8), (2, 3, 8)):
        with pytest.raises(ValueError, match=r"`condition` must be of shape \(B, channels\)"):
            block(f32(2, 3, 8), f32(*shape))


def test_convolution_blocks_check_what_comes_after_they_were_built():
    down, up = Downsample(3), Upsample(3)
    down(f32(2, 8, 8, 1)), up(f32(2, 4, 4, 1))
    with pytest.raises(ValueError, match="must be a multiple of `factor`"):
        down(f32(2, 5, 5, 1))
    for layer in (down, up):
        for shape in ((2, 8, 1), (2, 0, 4, 1)):
            with pytest.raises(ValueError, match="expects inputs of 4 dimensions"):
                layer(f32(*shape))


@pytest.mark.parametrize("labels", [[0.5], [NAN], [4], [-1]])
def test_labels_of_no_class(labels):
    with pytest.raises(ValueError, match="Labels must be from 0 to 2, or 3 for no label, in whole numbers"):
        LabelEmbedding(3, 8)(np.array(labels))


# === Diffusion ===


@pytest.mark.parametrize("process", [kv.RectifiedFlow, kv.GaussianDiffusion])
def test_times_and_noise_that_do_not_fit(process):
    process = process()
    for t in ([500, 20], [0.5, NAN], [-0.1, 0.2]):
        with pytest.raises(ValueError, match=r"Times `t` must be in \[0, 1\], where 0 is data"):
            process(f32(2, 4), t=np.array(t))
    for shape in ((2, 1), (4,), (1, 4)):
        with pytest.raises(ValueError, match=r"`noise` must have the shape of the examples, \(2, 4\)"):
            process(f32(2, 4), noise=f32(*shape))
        with pytest.raises(ValueError, match=r"`noise` must have the shape of the examples, \(2, 4\)"):
            process.loss(f32(2, 4), f32(2, 4), f32(*shape), f32(2) * 0 + 0.5)
    with pytest.raises(ValueError, match=r"Times `t` must be in \[0, 1\]"):
        network()({"x": f32(2, 2, 2, 4), "t": np.array([500, 3])})


def test_a_sampler_checks_times_and_estimates():
    process = kv.RectifiedFlow()
    for times in ([1.0, NAN, 0.0], keras.ops.convert_to_tensor([0.0, 0.5, 1.0])):
        with pytest.raises(ValueError, match="`times` must decrease strictly"):
            sample("euler", lambda x, t: (x, None), process, f32(2, 4), times)
    with pytest.raises(ValueError, match=r"`denoise` must return an estimate of the shape of x, \(2, 4\)"):
        sample("euler", lambda x, t: (x[:1], None), process, f32(2, 4), [1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"guidance_scale": NAN}, "`guidance_scale` must be a finite number"),
        ({"guidance_scale": "2"}, "`guidance_scale` must be a finite number"),
        ({"guidance_interval": 0.5}, "`guidance_interval` must be a pair"),
        ({"guidance_interval": (0, 0.5, 1)}, "`guidance_interval` must be a pair"),
        ({"guidance_rescale": NAN}, "`guidance_rescale` must be a finite number"),
        ({"sampler": "ddim", "eta": 3}, "`eta` must be a finite number, at least 0 and at most 1"),
        ({"clip": 1.0}, "`clip` must be a pair"),
        ({"clip": (1.0, -1.0)}, "`clip` must be a pair"),
        ({"clip": np.array([NAN, 1.0])}, "`clip` must be a pair"),
        ({"num_samples": 2.5}, "`num_samples` must be a positive integer"),
        ({"seed": "x"}, "`seed` must be an integer"),
        ({"context_mask": np.ones((1, 3))}, "`context_mask` must come with a `context`"),
    ],
)
def test_generate_checks_before_it_compiles(pixels, options, message):
    with pytest.raises(ValueError, match=message):
        pixels.generate(None if "num_samples" in options else 1, num_steps=2, verbose=0, **options)


@pytest.mark.parametrize(
    "context, mask, message",
    [
        (f32(2, 3), None, r"`context` must be of shape \(B, S, context_dim=4\)"),
        (f32(2, 3, 5), None, r"`context` must be of shape \(B, S, context_dim=4\)"),
        (f32(0, 3, 4), None, r"`context` must be of shape \(B, S, context_dim=4\), and not empty"),
        (f32(2, 3, 4) * NAN, None, "`context` must be finite"),
        (f32(2, 3, 4), np.ones((3, 3)), r"`context_mask` must be of shape \(2, 3\)"),
    ],
)
def test_a_context_that_does_not_fit(context, mask, message):
    model = kv.LatentDiffusion(None, kv.DiffusionTransformer(8, 1, 8, 1, context_dim=4))
    model({"image": f32(2, 2, 2, 1), "context": f32(2, 3, 4)})
    with pytest.raises(ValueError, match=message):
        model.generate(context=context, context_mask=mask, num_steps=2, verbose=0)


# === Training ===


@pytest.mark.parametrize(
    "change, message",
    [
        ({"label": np.arange(16) % 3 + 5}, "Labels must be from 0 to 2, or 3 for no label.*from 5 to 7"),
        ({"label": np.arange(16) % 3 - 1}, "Labels must be from 0 to 2, or 3 for no label.*from -1 to 1"),
        ({"label": np.arange(16) % 3 + 0.5}, r"Labels must be integers \(N,\). Received: float"),
        ({"label": np.eye(3, dtype=int)[np.arange(16) % 3]}, r"Labels must be integers \(N,\).*shape=\(16, 3\)"),
        ({"label": np.arange(5) % 3}, "equally many examples under every key.*'label': 5"),
        ({"sample_weight": np.ones((16, 1))}, r"`sample_weight` must be of shape \(N,\)"),
        ({"noise": f32(16, 1, 1, 1)}, "`noise` must have the shape of the examples"),
    ],
)
def test_fit_checks_before_the_first_step(pixels, change, message):
    before = [np.array(w) for w in pixels.weights]
    with pytest.raises(ValueError, match=message):
        pixels.fit({**examples(), **change}, verbose=0)
    for old, new in zip(before, pixels.weights):
        np.testing.assert_array_equal(old, new)


def test_sample_weights_of_a_data_set_come_with_its_batches(pixels):
    train, _ = data.load(examples(), batch_size=4)
    with pytest.raises(ValueError, match="Sample weights of a data set must come with its batches"):
        pixels.fit(train, sample_weight=np.ones(12), verbose=0)


def test_latents_of_another_tokenizer():
    for shape in ((2, 2, 7), (3, 3, 4)):
        model = kv.LatentDiffusion(tokenizer(), network())
        model.compile("sgd")
        with pytest.raises(ValueError, match=r"The latents must be of shape \(2, 2, 4\), those of the tokenizer"):
            model.fit({"latents": f32(16, *shape), "label": np.arange(16) % 3}, verbose=0)


def test_adapt_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="The latents of `data` must be finite"):
        tokenizer().adapt(f32(4, 8, 8, 1) * NAN)


def test_codes_of_a_tokenizer_without_codes():
    train, _ = data.load(examples(), batch_size=4)
    with pytest.raises(TypeError, match="`tokenizer.encode` must give integer codes"):
        data.encode_codes(train, tokenizer(kv.VAE))


def test_images_of_another_tokenizer():
    train, test = data.load(examples(size=12), batch_size=4)
    for measure in (
        lambda: recipes.measure_tokenizer(tokenizer(), test),
        lambda: recipes.train_diffusion(train, tokenizer(), epochs=1, verbose=0),
    ):
        with pytest.raises(
            ValueError, match=r"images of shape \(8, 8, 1\), those of the tokenizer. Received: \(12, 12,"
        ):
            measure()


@pytest.mark.parametrize("learning_rate", [NAN, INF, 0, -1])
def test_a_learning_rate_that_teaches_nothing(learning_rate):
    train, test = data.load(examples(), batch_size=4)
    with pytest.raises(ValueError, match="`learning_rate` must be a finite number, more than 0"):
        recipes.train_tokenizer(train, test, epochs=1, learning_rate=learning_rate, verbose=0)


# === The judge and other measures ===


def test_a_judge_checks_its_data_before_it_learns():
    train, test = data.load(examples(), batch_size=4)
    other = data.load(examples(size=12), batch_size=4)[1]
    unlabelled = data.load(f32(16, 8, 8, 1), batch_size=4)[1]
    for arguments, options, message in (
        ((train, other), {}, "`train` and `test` must have images of one shape"),
        ((train, unlabelled), {}, '`test` must yield dicts with "image" and "label"'),
        ((train, None), {}, '`test` must yield dicts with "image" and "label"'),
        ((train, test), {"num_classes": 2}, "`num_classes` must cover the classes of the data"),
        ((train, test), {"epochs": 0}, "`epochs` must be a positive integer"),
        ((train, test), {"learning_rate": NAN}, "`learning_rate` must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            train_classifier(*arguments, **options)


def test_another_model_is_no_judge(pixels):
    other = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match='must be of `build_classifier`, with a layer "features"'):
        features(other)
    _, test = data.load(examples(), batch_size=4)
    with pytest.raises(ValueError, match='must be of `build_classifier`, with a layer "features"'):
        recipes.measure_generation(pixels, other, test, num_samples=10**9)  # before anything is drawn
    _, unlabelled = data.load(f32(16, 8, 8, 1), batch_size=4)
    with pytest.raises(ValueError, match='The test data must have a "label"'):
        recipes.measure_judge(build_classifier((8, 8, 1), 3), unlabelled)


def test_measures_of_what_does_not_fit():
    for a, b in (((4, 4, 4), (4, 4, 4, 1)), ((2, 4, 4, 1), (2, 4, 4, 3)), ((1, 4, 4, 1), (2, 4, 4, 1))):
        with pytest.raises(ValueError, match="`y_true` and `y_pred` must have one shape"):
            PSNR().update_state(f32(*a), f32(*b))
    for options in ({"degree": 0.5}, {"chunk_size": -1}):
        with pytest.raises(ValueError, match="must be a positive integer"):
            kernel_distance(f32(4, 3), f32(4, 3), **options)


# === Figures ===


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: plotting.image_grid(f32(4, 8, 8) * NAN), "`images` must be finite"),
        (lambda: plotting.image_grid(f32(4, 8, 8), rows=1, columns=1), "4 images do not fit"),
        (lambda: plotting.reconstructions(f32(4, 8, 8) * NAN, f32(4, 8, 8)), "`originals` must be finite"),
        (lambda: plotting.reconstructions(f32(4, 8, 8), f32(4, 8, 8), columns=-1), "`columns` must be a positive int"),
        (lambda: plotting.code_maps(np.full((2, 3, 3), 9), num_embeddings=3), "`codes` must be less than"),
        (lambda: plotting.code_maps(np.full((2, 3, 3), 9), columns=0), "`columns` must be a positive integer"),
    ],
)
def test_figures_of_nonsense(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


# === Files and folders ===


def test_a_folder_without_a_name():
    for name in ("", " "):
        with pytest.raises(ValueError, match="`name` must name a data set, a folder or a file"):
            data.load(name)
    with pytest.raises(ValueError, match="There is no folder nowhere/"):
        data.load("nowhere/")


def test_a_damaged_model_is_named(tmp_path):
    for content in (b"", b"PK\x03\x04 half a file"):
        path = tmp_path / "half.keras"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="half.keras is damaged, or no .keras file"):
            saving.load_model(path)


def test_numbers_that_json_does_not_know(tmp_path):
    path = tmp_path / "metrics.json"
    saving.save_json({"a": 1}, path)
    with pytest.raises(ValueError, match="JSON"):
        saving.save_json({"a": NAN}, path)
    assert path.read_text() == '{\n  "a": 1\n}\n'


# === Command line ===


@pytest.mark.parametrize("rate", ["nan", "inf", "0", "-1"])
def test_a_bad_learning_rate_does_not_replace_a_model(tmp_path, rate, capsys):
    path = tmp_path / "keep.keras"
    path.write_bytes(b"old")
    with pytest.raises(SystemExit):
        cli.main(["train", "tokenizer", "--out", str(path), f"--learning-rate={rate}"])
    assert "must be a positive number" in capsys.readouterr().err
    assert path.read_bytes() == b"old"


def test_a_broken_training_does_not_replace_a_model(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "d.npz", image=np.zeros((40, 8, 8), "uint8") + 7, label=np.arange(40) % 3)
    path = tmp_path / "keep.keras"
    path.write_bytes(b"old")
    broken = tokenizer()
    broken.set_weights([w * NAN for w in broken.get_weights()])
    monkeypatch.setattr(recipes, "train_tokenizer", lambda *_, **__: (broken, {}))
    assert cli.main(["train", "tokenizer", "--dataset", str(tmp_path / "d.npz"), "--out", str(path)]) == 2
    assert "Training ended with a loss that is not finite" in capsys.readouterr().err
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("text", ["0-99999999999", "²", ""])
def test_labels_that_would_fill_the_memory_or_are_none(text):
    with pytest.raises(ValueError, match="--labels must"):
        cli.parse_labels(text, 10)


def test_fast_and_a_budget_exclude_each_other(capsys):
    for budget in ("fast", "quick", "full"):
        with pytest.raises(SystemExit):
            cli.main(["quickstart", "--fast", "--budget", budget])
        assert "not allowed with" in capsys.readouterr().err
