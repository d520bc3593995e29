"""Export: SavedModel, LiteRT and ONNX files of a model's endpoints, which need nothing of this package or of Keras to run."""

import contextlib
import importlib.metadata
import importlib.util
import json
import keyword
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras

from keras_vqdit.saving.files import open_archive
from keras_vqdit.saving.folders import atomic_folder, check_folder, expand
from keras_vqdit.saving.preset import (
    CARD,
    METADATA,
    card_text,
    find_preset,
    is_ours,
    json_text,
    read_card,
    read_metadata,
)
from keras_vqdit.saving.strict import MAX_JSON, first_line, parse_json, read_json, short

FORMAT = "keras_vqdit export"
FORMATS = ("tf_saved_model", "litert", "onnx")
# What LiteRT and ONNX get, and of several modalities `encode_NAME` and `decode_NAME`: neither loops nor two in one.
WITHOUT_LOOPS = ("encode", "decode", "decode_latents", "denoise")
ONNX_OPSET = 18
MAX_LINES = 50  # of what a stranger wrote
OURS = ("format", "kind", "model", "parameter_count", "exported_with", "signatures")  # what an export says of itself
WRITTEN = {CARD, "saved_model.pb", "fingerprint.pb", "variables", "assets"}
CALLS = {  # how what follows is called
    "tf_saved_model": "import tensorflow as tf; model = tf.saved_model.load({path!r})",
    "litert": "import numpy as np; from ai_edge_litert.interpreter import Interpreter  # pip install ai-edge-litert",
    "onnx": "import numpy as np, onnxruntime",
}
EXAMPLES = {"num_steps": "20", "guidance_scale": "1.5", "num_samples": "4"}


class Endpoint(NamedTuple):
    """What a model does for others: a function of named tensors.

    Attributes:
        function: takes tensors by name, and returns a dict of tensors.
        inputs: name -> `(shape, dtype)`, where `None` is any size.
        about: what it does, in a line.
        ranges: name -> the lowest and the highest value that an input may have.
        notes: what else users should know, for the card.
    """

    function: Callable
    inputs: dict
    about: str
    ranges: dict = {}
    notes: dict = {}


def export(model, path, *, format="tf_saved_model", card=None, only=None, **options):
    """Write a model for those who run it without this package.

    Args:
        model: a `VQVAE`, `VAE` or `LatentDiffusion`, or any built model with a method `endpoints()` that returns a dict of names
            and `Endpoint`s.
        path: folder. It is made; what is there is replaced if it is an export.
        format: `"tf_saved_model"`, all endpoints in one SavedModel, for TensorFlow alone, or `"litert"` or `"onnx"`, a file
            `NAME.tflite` or `NAME.onnx` for each endpoint but `reconstruct` and `sample`; ONNX is written by the package
            `tf2onnx`. Defaults to `"tf_saved_model"`.
        card: dict of what users should know: data, metrics, command, licence. It must fit JSON. Defaults to `None`, the card
            of the preset that the model comes from.
        only: list of the endpoints to write, such as `["denoise"]`, where a converter does not know others. Defaults to `None`,
            all.
        **options: of the model's `endpoints`; of a `LatentDiffusion` `sampler`, `guidance_interval` and their like.

    Returns:
        Dict: the model card that was written, `card` with the signatures.

    Raises:
        ValueError: if the model is not built, `format` or an endpoint is unknown, or a converter does not know a part of the
            model.
        TypeError: if the model has no endpoints.
        ImportError: if `format` is `"onnx"` and `tf2onnx` is not installed.
        FileExistsError: if `path` holds something else.

    Example:

    ```python
    kv.saving.export(model, "exported/digits")

    # Elsewhere, with TensorFlow alone:
    model = tf.saved_model.load("exported/digits")  # keep it: it owns the weights
    sample = model.signatures["sample"]
    given = {"labels": [3, 7], "seed": [0, 0], "guidance_scale": 1.5, "num_steps": 20}
    images = sample(**{name: tf.constant(value) for name, value in given.items()})["image"]
    ```
    """
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(map(repr, FORMATS))}. Received: format={format!r}")
    if not hasattr(model, "endpoints") or isinstance(model, type):
        raise TypeError(
            f"`model` must have endpoints, as VQVAE, VAE, LatentDiffusion and MultimodalDiffusion do. Received: {model!r}"
        )
    if format == "onnx" and not importlib.util.find_spec("tf2onnx"):
        raise ImportError('ONNX files are written by tf2onnx. Install it by: pip install "keras_vqdit[onnx]"')
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "Models are exported on the TensorFlow backend: save a preset, and load it there. "
            f"Received: backend {keras.backend.backend()!r}"
        )
    if not model.built:
        raise ValueError("The model must be built before it is exported: train it, or call it on a batch")
    check_folder(path, is_export)
    card = json.loads(card_text(getattr(model, "card", None) if card is None else card))
    if taken := sorted(set(card) & set(OURS)):
        raise ValueError(f"`card` must leave {', '.join(OURS)} to the export. Received: {', '.join(taken)}")
    endpoints = model.endpoints(**options)
    if format != "tf_saved_model":
        endpoints = {name: one for name, one in endpoints.items() if _has_no_loops(name)}
    if only is not None:
        unknown = sorted(set(only) - set(endpoints))
        if unknown or not only:
            raise ValueError(
                f"`only` must be of the endpoints {', '.join(endpoints)}. Received: {', '.join(unknown) or 'none'}"
            )
        endpoints = {name: endpoints[name] for name in only}
    _check_endpoints(endpoints)
    if not endpoints:
        raise ValueError(f"`model` must have endpoints among {', '.join(WITHOUT_LOOPS)}. Received: {model!r}")
    functions = {name: _concrete(endpoint) for name, endpoint in endpoints.items()}
    about = {
        **card,
        "format": FORMAT,
        "kind": format,
        "model": type(model).__name__,
        "parameter_count": int(sum(_size(v) for v in _variables(functions))),
        "exported_with": _versions(),
        "signatures": {name: _signature(endpoints[name], function) for name, function in functions.items()},
    }
    text = json_text(about, "`card`")
    with atomic_folder(path, is_export) as folder, _without_notes():
        {"tf_saved_model": _save, "litert": _save_litert, "onnx": _save_onnx}[format](functions, folder)
        (folder / CARD).write_text(text)
    return json.loads(text)


def is_export(path):
    """Whether a folder is an export, and nothing else lies in it."""
    return is_ours(path, CARD, FORMAT, lambda name: name in WRITTEN or Path(name).suffix in (".tflite", ".onnx"))


def _concrete(endpoint):
    """The endpoint as a concrete function of TensorFlow, float32 in and out."""
    import tensorflow as tf

    def run(**tensors):
        with tf.control_dependencies(_checks(endpoint, tensors)):
            tensors = {name: tf.identity(tensor) for name, tensor in tensors.items()}
        results = endpoint.function(**tensors)
        return {
            name: tf.cast(one, tf.float32) if one.dtype.is_floating else tf.identity(one)
            for name, one in results.items()
        }

    specs = {name: tf.TensorSpec(shape, dtype, name) for name, (shape, dtype) in endpoint.inputs.items()}
    return tf.function(run, autograph=False).get_concrete_function(**specs)


def _checks(endpoint, tensors):
    """Operations that fail for wrong shapes, at which signatures do not look, and values. XLA, LiteRT and ONNX leave them out."""
    import tensorflow as tf

    def check(fits, text, value):
        checks.append(tf.debugging.Assert(fits, [text + ". Received:", value]))

    checks, sizes = [], {}
    for name, (shape, _) in endpoint.inputs.items():
        tensor, found = tensors[name], tf.shape(tensors[name])
        fits = [found[axis] == size for axis, size in enumerate(shape) if size is not None]
        if fits:
            check(tf.reduce_all(fits), f"`{name}` must be of shape {_shape(list(shape))}", found)
        if tensor.dtype.is_floating:
            check(tf.reduce_all(tf.math.is_finite(tensor)), f"`{name}` must be finite", tensor)
        if name in endpoint.ranges:
            low, high = endpoint.ranges[name]
            check(tf.reduce_all((tensor >= low) & (tensor <= high)), f"`{name}` must be from {low} to {high}", tensor)
        if shape and shape[0] is None:
            sizes[name] = found[0]
    if len(sizes) > 1:
        count = tf.stack(list(sizes.values()))
        check(tf.reduce_all(count == count[0]), f"{', '.join(sizes)} must have equally many examples", count)
    return [one for one in checks if one is not None]


def _has_no_loops(name):
    return name in WITHOUT_LOOPS or name.startswith(("encode_", "decode_"))


def _check_endpoints(endpoints):
    if not isinstance(endpoints, dict) or not all(isinstance(one, Endpoint) for one in endpoints.values()):
        raise TypeError(f"`model.endpoints()` must give a dict of names and `Endpoint`s. Received: {endpoints!r}")
    for name, endpoint in endpoints.items():
        for text in (name, *endpoint.inputs):
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", text) or keyword.iskeyword(text) or text == "self":
                raise ValueError(
                    f"Endpoints and inputs, so modalities too, must have names that Python can write. Received: {text!r}"
                )


def _variables(functions):
    return list({id(v): v for function in functions.values() for v in function.graph.variables}.values())


def _size(variable):
    return variable.shape.num_elements()


def _signature(endpoint, function):
    inputs = _specs(function.structured_input_signature[1])
    for name, (low, high) in endpoint.ranges.items():
        inputs[name].update(minimum=low, maximum=high)
    return {"about": endpoint.about, "inputs": inputs, "outputs": _specs(function.structured_outputs), **endpoint.notes}


def _specs(structure):
    return {name: {"shape": list(spec.shape), "dtype": spec.dtype.name} for name, spec in sorted(structure.items())}


def _versions():
    found = {"keras": keras.__version__}
    for name in ("keras_vqdit", "tensorflow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@contextlib.contextmanager
def _without_notes():
    """No notes of TensorFlow's on where it writes: they name folders that are gone in the end."""
    import tensorflow as tf

    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)


def _save(functions, folder):
    import tensorflow as tf

    module = tf.Module()
    module.weights = _variables(functions)
    module.functions = functions
    default = functions.get("sample") or functions.get("reconstruct") or next(iter(functions.values()))
    tf.saved_model.save(module, str(folder), signatures={**functions, "serving_default": default})


def _save_litert(functions, folder):
    import tensorflow as tf

    for name, function in functions.items():
        module = tf.Module()
        module.weights = _variables({name: function})
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
        with _named_failure(name, "TensorFlow Lite"):
            (folder / f"{name}.tflite").write_bytes(converter.convert())


def _save_onnx(functions, folder):
    import onnx
    import tensorflow as tf
    import tf2onnx

    def convert(function):
        inputs = function.structured_input_signature[1]
        positional = tf.function(lambda *tensors: function(**dict(zip(inputs, tensors, strict=True))), autograph=False)
        return tf2onnx.convert.from_function(positional, input_signature=list(inputs.values()), opset=ONNX_OPSET)[0]

    for name, function in functions.items():
        with _named_failure(name, f"tf2onnx {tf2onnx.__version__}"):
            model = convert(function)
            # What it does not know it leaves in the file, which no runtime reads then.
            left = {node.op_type for node in model.graph.node if not onnx.defs.has(node.op_type, node.domain)}
            if left:
                raise ValueError(" ".join(f"tf.{name}" for name in sorted(left)))
            (folder / f"{name}.onnx").write_bytes(model.SerializeToString())


@contextlib.contextmanager
def _named_failure(name, converter):
    try:
        yield
    except Exception as error:
        missing = sorted(set(re.findall(r"tf\.([A-Z]\w+)", str(error))))
        why = f"it has no {', '.join(missing)} of such types or shapes" if missing else first_line(error)
        message = f"{converter} can not convert `{name}` of this model: {why}. Another format may, or `only` others"
        raise ValueError(message) from error


# === Inspection ===


def inspect(path):
    """Tell what an export, a preset or a `.keras` file holds. Nothing of it is executed, or loaded but its descriptions.

    Args:
        path: the file or folder, or the name of a preset that comes with the package.

    Returns:
        List of lines.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is damaged, or something else.
    """
    path = expand(path)
    if not path.exists():
        path = find_preset(str(path))
    if path.is_file():
        return _inspect_archive(path)
    if is_export(path):
        return _inspect_export(path)
    if (path / METADATA).exists():
        metadata, card = read_metadata(path), read_card(path)
        about = [
            f"{path}: a preset of a {short(metadata.get('model'))}, {_count(metadata)} weights, {_megabytes(path)}"
        ]
        call = f"keras_vqdit.{short(metadata.get('model'))}.from_preset({str(path)!r})"
        return [*about, *_card_lines(card), "", call]
    raise ValueError(f"{path} must be an export, a preset, or a .keras file")


def _card_lines(card):
    lines = [f"  {short(key)}: {short(value)}" for key, value in list(card.items())[:MAX_LINES]]
    return lines + [f"  … and {len(card) - MAX_LINES} more"] * (len(card) > MAX_LINES)


def _inspect_export(path):
    card = read_json(path / CARD)
    signatures = card.get("signatures")
    lines = [
        f"{path}: a {short(card.get('model'))} as {short(card.get('kind'))}, {_count(card)} weights, {_megabytes(path)}"
    ]
    lines += _card_lines({key: value for key, value in card.items() if key not in OURS})
    kind = card.get("kind") if isinstance(card.get("kind"), str) else ""
    if kind in CALLS:
        lines += ["", CALLS[kind].format(path=str(path))]
    for name, one in list(signatures.items() if isinstance(signatures, dict) else ())[:MAX_LINES]:
        one = one if isinstance(one, dict) else {}
        lines += ["", f"{short(name)}: {short(one.get('about'))}"]
        for what in ("inputs", "outputs"):
            specs = one.get(what)
            for key, spec in list(specs.items() if isinstance(specs, dict) else ())[:MAX_LINES]:
                spec = spec if isinstance(spec, dict) else {}
                known = f", {short(spec['minimum'])} to {short(spec.get('maximum'))}" if "minimum" in spec else ""
                lines.append(
                    f"  {what[:-1]:<6}  {short(key)}: {short(spec.get('dtype'))} {_shape(spec.get('shape'))}{known}"
                )
        known = ("about", "inputs", "outputs")
        lines += [f"  {short(key)}: {short(value)}" for key, value in list(one.items())[:MAX_LINES] if key not in known]
        if kind in CALLS:
            lines.append("  " + short(_call(kind, str(path), str(name), one), 3000))
    return lines


def _call(kind, path, name, signature):
    """A call of an endpoint, to be copied."""
    specs = [signature[what] if isinstance(signature.get(what), dict) else {} for what in ("inputs", "outputs")]
    array = "tf.constant({}, {!r})" if kind == "tf_saved_model" else "np.array({}, {!r})"
    zeros = array.split(".")[0] + ".zeros({}, {!r})"
    unknown = "tf.fill({}, -1)" if kind == "tf_saved_model" else "np.full({}, -1, 'int32')"
    given = {}
    for key, spec in specs[0].items():
        spec = spec if isinstance(spec, dict) else {}
        sizes = [1 if size is None else size for size in spec.get("shape") or ()]
        value = (
            EXAMPLES.get(key, "0") if not sizes else str([0] * sizes[0]) if len(sizes) == 1 and sizes[0] < 9 else None
        )
        if value is not None:
            given[key] = array.format(value, spec.get("dtype"))
        elif spec.get("minimum") == -1:  # a code to be filled in
            given[key] = unknown.format(tuple(sizes))
        else:
            given[key] = zeros.format(tuple(sizes), spec.get("dtype"))
    output = next(iter(specs[1]), "")
    if kind == "onnx":
        inputs = ", ".join(f"{key!r}: {value}" for key, value in given.items())
        return f"onnxruntime.InferenceSession({path + '/' + name + '.onnx'!r}).run([{output!r}], {{{inputs}}})[0]"
    inputs = ", ".join(f"{key}={value}" for key, value in given.items())
    if kind == "litert":
        return f"Interpreter({path + '/' + name + '.tflite'!r}).get_signature_runner()({inputs})[{output!r}]"
    return f"model.signatures[{name!r}]({inputs})[{output!r}]"


def _inspect_archive(path):
    with open_archive(path) as archive, archive.open("config.json") as file:
        config = parse_json(file.read(MAX_JSON + 1), f"{path}, config.json")
    return [
        f"{path}: a {short(config.get('class_name'))} as .keras file, {path.stat().st_size / 1e6:.1f} MB",
        "",
        f"keras_vqdit.saving.load_model({str(path)!r})",
    ]


def _shape(sizes):
    sizes = sizes if isinstance(sizes, list) else []
    return "[" + ", ".join("any" if size is None else short(size) for size in sizes[:16]) + "]"


def _count(content):
    count = content.get("parameter_count")
    return f"{count:,}" if type(count) is int and 0 <= count < 10**15 else "?"


def _megabytes(path):
    return f"{sum(file.stat().st_size for file in path.rglob('*') if file.is_file()) / 1e6:.1f} MB"
