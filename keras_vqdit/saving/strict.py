"""Reading files of strangers: JSON, configurations and arrays that are checked before anything is made of them."""

import functools
import inspect
import json
import math
import os
import re
import stat
import zipfile
from pathlib import Path

import keras
import numpy as np

MAX_JSON = 4 << 20  # bytes
MAX_DEPTH = 64
MAX_ARRAYS = 100_000
MAX_INTEGER = 1 << 24  # of a size in a configuration
MAX_EXAMPLE = 1 << 30  # elements of what a list of sizes describes
MAX_COST = 2_000  # layers that are made or called
CHEAP = ("keras", "keras.initializers", "keras.regularizers", "keras.constraints")  # rooms of what is no layer
MAX_TEXT = 1_000  # letters
FREE = ("seed", "shared_object_id")  # integers of any size
# Integers that become loops or tables when a model is made, and can not be that large.
LIMITS = {"num_layers": 256, "num_levels": 256, "num_heads": 4096, "num_timesteps": 100_000, "rank": 5}
PATTERNS = ("exclude_layers",)  # regular expressions of Muon: plain words only, for others can take for ever

# What Keras may make out of a configuration: layers that compute, and what belongs to them. None of these reads files or
# runs code that a configuration holds, as `Lambda`, `TFSMLayer` or the vocabularies of `StringLookup` do.
LAYERS = """
Activation ActivityRegularization Add AlphaDropout Attention Average AveragePooling1D AveragePooling2D AveragePooling3D
AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D
AdaptiveMaxPooling3D AdditiveAttention BatchNormalization Bidirectional CenterCrop Concatenate Conv1D Conv1DTranspose Conv2D
Conv2DTranspose Conv3D Conv3DTranspose Cropping1D Cropping2D Cropping3D Dense DepthwiseConv1D DepthwiseConv2D Dot Dropout
ELU EinsumDense Embedding Flatten GRU GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization GroupQueryAttention
Identity InputLayer LSTM LayerNormalization LeakyReLU Masking MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum
MultiHeadAttention Multiply Normalization PReLU Permute RMSNormalization ReLU RepeatVector Rescaling Reshape Resizing
SeparableConv1D SeparableConv2D SimpleRNN Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization
Subtract UnitNormalization UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
""".split()
# How `a + b` and `keras.ops.tanh(x)` are written in a functional model. None takes a function.
OPERATIONS = {
    "numpy": "Abs Absolute Add Amax Amin Clip Concatenate Cos Divide Einsum Exp ExpandDims Expm1 Flip GetItem Log Log1p Matmul "
    "Max Maximum Mean Min Minimum Moveaxis Multiply Negative Power Repeat Reshape Roll Sin Split Sqrt Square Squeeze Stack Std "
    "Subtract Sum Swapaxes Tanh Tile Transpose TrueDivide Var Where",
    "nn": "AveragePool Celu Elu Gelu HardSigmoid HardSilu HardTanh LeakyRelu LogSigmoid LogSoftmax MaxPool Relu Relu6 Selu "
    "Sigmoid Silu Softmax Softplus Softsign",
}
OTHERS = {
    "initializers": "Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal LecunUniform Ones Orthogonal "
    "RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros",
    "regularizers": "L1 L1L2 L2 OrthogonalRegularizer",
    "constraints": "MaxNorm MinMaxNorm NonNeg UnitNorm",
}
COMPILED = {  # what a model is compiled with, and is no part of any other
    "optimizers": "Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lamb Lion LossScaleOptimizer Muon Nadam RMSprop SGD",
    "optimizers.schedules": "CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay PiecewiseConstantDecay "
    "PolynomialDecay",
}
FUNCTION = ("function", "builtins")  # class name and module with which Keras writes its functions
TENSOR = "__keras_tensor__"  # how the configuration of a functional model writes a tensor


@functools.cache
def _known(compiled):
    """`(class_name, module)` of the classes of Keras that a configuration may name."""
    found = {("DTypePolicy", "keras"), ("Functional", "keras"), ("Model", "keras"), ("Sequential", "keras")}
    found |= {("Functional", "keras.src.models.functional"), ("Sequential", "keras.src.models.sequential")}
    found |= {(name, "keras.layers") for name in LAYERS}
    found |= {(name, f"keras.src.ops.{room}") for room, names in OPERATIONS.items() for name in names.split()}
    for room, names in (OTHERS | COMPILED if compiled else OTHERS).items():
        found |= {(name, f"keras.{room}") for name in names.split()}
    if compiled:
        found |= {(name, "keras.losses") for name, one in vars(keras.losses).items() if isinstance(one, type)}
        found |= {(name, "keras.metrics") for name, one in vars(keras.metrics).items() if isinstance(one, type)}
    return found


def short(value, limit=300):
    """A text of a stranger, of at most so many letters, and without what moves the cursor of a terminal."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = "".join(letter if letter.isprintable() else " " for letter in text[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "…"


# === JSON ===


def open_regular(path):
    """Open a file for reading, if it is a regular one: neither a folder nor a link, nor a pipe that never ends.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is something else.
    """
    path = Path(path)
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {path}") from None
    if stat.S_ISREG(kind):
        # Without waiting, if a pipe has taken its place.
        file = open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)), "rb")
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    raise ValueError(f"{path} must be a regular file, not a folder or a link")


def read_json(path):
    """The object in a JSON file of a stranger.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is too large, no JSON object, nested too deeply, or has keys twice, NaN or infinity.
    """
    with open_regular(path) as file:
        text = file.read(MAX_JSON + 1)
    return parse_json(text, path)


def parse_json(text, path, *, finite=True):
    """As `read_json`, of bytes; `path` is for the errors. Without `finite`, NaN and infinity are welcome."""
    if len(text) > MAX_JSON:
        raise ValueError(f"{path} must have at most {MAX_JSON} bytes")

    def refuse(constant):
        raise ValueError(f"received {constant}")

    def number(text):
        return float(text) if math.isfinite(float(text)) or not finite else refuse(text)

    def once(pairs):
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ValueError("received a key twice")
        return dict(pairs)

    try:
        content = json.loads(
            text.decode("utf-8"), parse_constant=refuse if finite else float, parse_float=number, object_pairs_hook=once
        )
    except RecursionError:
        raise ValueError(f"{path} must be nested at most {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged, or no JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object. Received: {type(content).__name__}")
    for _, _, depth in _walk(content):
        if depth > MAX_DEPTH:
            raise ValueError(f"{path} must be nested at most {MAX_DEPTH} deep")
    return content


def _walk(content):
    """`(key, value, depth)` of all values, without recursion."""
    todo = [("", content, 0)]
    while todo:
        key, value, depth = todo.pop()
        yield key, value, depth
        if isinstance(value, dict):
            todo += [(name, one, depth + 1) for name, one in value.items()]
        elif isinstance(value, list):
            todo += [(key, one, depth + 1) for one in value]


# === Configurations ===


def check_config(config, path, custom_objects=None):
    """Check that what Keras makes of a configuration is known, and no size is absurd.

    Objects may be of this package, of a list of Keras's own classes that neither read files nor run code from a
    configuration, or registered in this process by `keras.saving.register_keras_serializable`; a configuration can not name
    modules to import. Optimizers, losses and metrics may stand in a `compile_config` alone.

    Args:
        config: dict, as `keras.saving.serialize_keras_object` makes it.
        path: of the file, for the errors.
        custom_objects: dict of names and classes that are welcome, too.

    Raises:
        ValueError: for anything else.
    """
    for content, is_compiled in ((without_compilation(config), False), ({"compiled": compilations(config)}, True)):
        for key, value, _ in _walk(content):
            if isinstance(value, str) and len(value) > MAX_TEXT or len(key) > MAX_TEXT:
                raise ValueError(f"{path}: texts must have at most {MAX_TEXT} letters. Received: {short(value)}")
            elif key == "unroll" and value:  # step by step, for any number of steps
                raise ValueError(f"{path}: 'unroll' must be false. Received: unroll={short(value)}")
            elif isinstance(value, dict) and "class_name" in value:
                _check_object(value, path, custom_objects or {}, is_compiled)
            elif isinstance(value, int) and not isinstance(value, bool) and key not in FREE:
                limit = LIMITS.get(key, MAX_INTEGER)
                if abs(value) > limit:
                    raise ValueError(f"{path}: {short(key)!r} must be at most {limit}. Received: {short(value)}")
            elif isinstance(value, list):
                sizes = [size for size in value if isinstance(size, int)]
                if 2 <= len(sizes) <= 8 and math.prod(map(abs, sizes)) > MAX_EXAMPLE:
                    raise ValueError(
                        f"{path}: {short(key)!r} must be of at most {MAX_EXAMPLE} elements. Received: {short(value)}"
                    )
                if key in PATTERNS and not all(
                    isinstance(one, str) and re.fullmatch(r"[\w/ .-]*", one) for one in value
                ):
                    raise ValueError(f"{path}: {short(key)!r} must hold plain words. Received: {short(value)}")
    if (cost := _cost(config)) > MAX_COST:
        raise ValueError(f"{path} must make and call at most {MAX_COST} layers. Received: {cost} or more")


def _cost(value):
    """How many layers a configuration makes and calls: a model that is called twice calls its layers twice."""
    if isinstance(value, list):
        return sum(map(_cost, value))
    if not isinstance(value, dict):
        return 0
    cost = sum(_cost(one) for key, one in value.items() if key != "inbound_nodes")
    if "class_name" in value:
        size = value.get("config") if isinstance(value.get("config"), dict) else {}
        numbers = [(size.get("num_layers"), 1), (size.get("num_levels"), 1), (size.get("num_timesteps"), 1000)]
        cost += value.get("module") not in CHEAP and value["class_name"] not in (TENSOR, FUNCTION[0])
        cost += sum(count // one for count, one in numbers if isinstance(count, int))
        layers = size.get("layers")
        if value["class_name"] == "Sequential" and isinstance(layers, list):
            cost += len(layers) ** 2 // 100  # it is built anew for each of them
        nodes = value.get("inbound_nodes")
        cost *= max(len(nodes), 1) if isinstance(nodes, list) else 1
    return min(cost, 10 * MAX_COST)


def compilations(config):
    """The `compile_config`s of a configuration, that of the model and those of models within it."""
    return [value for key, value, _ in _walk(config) if key == "compile_config" and isinstance(value, dict)]


def without_compilation(config):
    """A copy of a configuration in which no model is compiled."""
    if isinstance(config, list):
        return [without_compilation(one) for one in config]
    if not isinstance(config, dict):
        return config
    return {key: without_compilation(one) for key, one in config.items() if key != "compile_config"}


def _check_object(value, path, custom_objects, compiled):
    name, module, registered = value.get("class_name"), value.get("module"), value.get("registered_name")
    if name == TENSOR or name == FUNCTION[0] and _is_known_function(value, compiled):
        return
    if all(text is None or isinstance(text, str) for text in (name, module, registered)):
        custom = custom_objects.get(registered) or custom_objects.get(name)
        if custom is not None and module in (None, getattr(custom, "__module__", None)):
            return
        if (name, module) in _known(compiled) and registered in (None, name):
            return
        # Which Keras takes, whatever the module.
        cls = keras.saving.get_registered_object(registered) if registered else None
        others = (keras.metrics.Metric, keras.optimizers.Optimizer)
        if isinstance(cls, type) and cls.__name__ == name and (compiled or not issubclass(cls, others)):
            return
    received = ".".join(short(part)[:80] for part in (module, name) if part)
    raise ValueError(
        f"{path} must name classes of this package, layers of Keras that run no code from files, or classes that are registered "
        f"by `keras.saving.register_keras_serializable`. Received: {received}"
    )


def _is_known_function(value, compiled):
    """Whether it is how Keras writes a registered function, or one of its own activations, and to compile losses or metrics."""
    name = value.get("config")
    if value.get("module") != FUNCTION[1] or not isinstance(name, str):
        return False
    rooms = (keras.activations, *((keras.losses, keras.metrics) if compiled else ()))
    own = name.isidentifier() and any(inspect.isfunction(vars(room).get(name)) for room in rooms)
    return own or inspect.isfunction(keras.saving.get_registered_object(name))


class without_values:
    """A scope in which a model is built without values: its variables have shapes, and take no memory.

    Attributes:
        active: whether such a scope is open: a variable that is read in it would get its value, and take its memory.
        variables: after the block, all variables that were made in it, those of metrics and constraints included.
    """

    active = False

    def __enter__(self):
        from keras.src.backend.common import global_state

        self._waiting = list(global_state.get_global_attribute("uninitialized_variables", []))
        self._scope = keras.StatelessScope(initialize_variables=False)
        self._scope.__enter__()
        without_values.active = True
        return self

    def __exit__(self, *error):
        from keras.src.backend.common import global_state

        without_values.active = False
        self._scope.__exit__(*error)
        found = global_state.get_global_attribute("uninitialized_variables", [])
        known = {id(variable) for variable in self._waiting}
        self.variables = [variable for variable in found if id(variable) not in known]
        global_state.set_global_attribute("uninitialized_variables", self._waiting)

    @property
    def size(self):
        """Bytes that the variables would take."""
        return sum(math.prod(variable.shape) * itemsize(variable.dtype) for variable in self.variables)


def itemsize(dtype):
    """Bytes of a number."""
    bits = re.search(r"\d+$", keras.backend.standardize_dtype(dtype))
    return int(bits[0]) // 8 if bits else 1


def check_size(scope, stored, path):
    """Refuse what would take much more memory than the `stored` bytes of its weights: moving averages and counts may."""
    if scope.size > 4 * stored + (1 << 22):
        raise ValueError(
            f"{path} must make variables of at most four times its weights, {stored} bytes. Received: {scope.size} bytes"
        )


# === Arrays in HDF5 ===

DTYPES = ("float32", "float16", "float64", "int32", "int64", "bool", "uint32", "uint8")


def plain_arrays(group, size, depth=MAX_DEPTH, extra=()):
    """`[(name, data set)]` of an open HDF5 file, sorted, none of which has been read.

    Args:
        group: the file.
        size: its size in bytes, which the arrays together must fit into.
        depth: how deep groups may be nested.
        extra: names of further dtypes.

    Raises:
        ValueError: for anything but plain arrays that lie whole in the file.
    """
    import h5py

    found, total, todo, seen = [], 0, [(group, "", 0)], set()
    while todo:
        group, prefix, level = todo.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"received a link, {prefix + name!r}")
            data = group[name]
            address = h5py.h5o.get_info(data.id).addr
            if address in seen or len(seen) > MAX_ARRAYS:
                raise ValueError(f"received an object twice, or too many of them, {prefix + name!r}")
            seen.add(address)
            if isinstance(data, h5py.Group) and level < depth:
                todo.append((data, f"{prefix}{name}/", level + 1))
                continue
            if not isinstance(data, h5py.Dataset):
                raise ValueError(f"received {prefix + name!r}, which is no array")
            if data.external or data.is_virtual or data.id.get_create_plist().get_nfilters() or data.chunks:
                raise ValueError(f"received {prefix + name!r}, which does not lie in the file as it is")
            if data.dtype.name not in (*DTYPES, *extra):
                raise ValueError(f"received {prefix + name!r} of dtype {data.dtype}")
            found.append((prefix + name, data))
            total += data.size * data.dtype.itemsize
            if total > size:
                raise ValueError(f"received arrays of {total} bytes or more in a file of {size}")
    return sorted(found, key=lambda entry: entry[0])


class Weights:
    """The arrays in the root of an HDF5 file of a stranger, whose shapes are known before they are read.

    Args:
        path: the file.
        shown: the path for errors. Defaults to `path`.

    Attributes:
        shapes: dict of names and shapes, in the order of the names.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no HDF5 file, or holds anything but plain float and integer arrays that lie whole in the file.
    """

    def __init__(self, path, shown=None):
        import h5py

        self.path = Path(shown or path)
        self._raw = open_regular(path)
        try:
            self._file = h5py.File(self._raw, "r")
            size = os.fstat(self._raw.fileno()).st_size
            self.shapes = {name: tuple(data.shape) for name, data in plain_arrays(self._file, size, depth=0)}
        except Exception as error:  # of h5py, which knows no class of its own for damaged files
            self.close()
            raise ValueError(f"{self.path} is damaged, or no file of weights: {first_line(error)}") from None

    def read(self, name, dtype):
        """The array of a name, in a dtype.

        Raises:
            ValueError: if it can not be read, is of another kind of numbers, or is not finite.
        """
        try:
            values = self._file[name][()]
        except Exception as error:
            raise ValueError(f"{self.path} is damaged: {first_line(error)}") from None
        dtype = "float32" if dtype == "bfloat16" else dtype
        if values.dtype.kind != np.dtype(dtype).kind:
            raise ValueError(f"{self.path} must hold {name!r} as {dtype}. Received: {values.dtype}")
        with np.errstate(over="ignore"):
            values = values.astype(dtype)
        if not np.all(np.isfinite(values.astype("float32"))):
            raise ValueError(f"{self.path} must hold finite weights. Received: NaN or infinite values in {name!r}")
        return values

    def close(self):
        """Close the file."""
        for file in (getattr(self, "_file", None), self._raw):
            if file is not None:
                file.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def first_line(error):
    """The first line of an error's message, short."""
    return short((str(error).strip().splitlines() or [type(error).__name__])[0])


# === Arrays in .npz ===


def read_npz(path):
    """The arrays of an uncompressed `.npz` file of a stranger, as `numpy.savez` writes it.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no such file, is compressed, holds objects, or an array that is larger than its part of the file.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            names = [member.filename for member in archive.infolist()]
            if len(set(names)) < len(names):
                raise ValueError("received a name twice")
            if sum(member.file_size for member in archive.infolist()) > os.fstat(file.fileno()).st_size:
                raise ValueError("received arrays that lie over each other")
            return {member.filename.removesuffix(".npy"): _read_npy(archive, member) for member in archive.infolist()}
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged, or no file of arrays: {first_line(error)}") from None


def _read_npy(archive, member):
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError(f"received {member.filename!r}, which is compressed")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"received {member.filename!r} of version {version}")
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=0) < 0 or size > member.file_size:
            raise ValueError(f"received {member.filename!r} of shape {shape} and dtype {dtype}")
        content = file.read(size + 1)  # to the end, where zipfile compares the checksum
        if len(content) != size:
            raise ValueError(f"received {member.filename!r} of {len(content)} bytes, not {size}")
        return np.frombuffer(bytearray(content), dtype).reshape(shape, order="F" if fortran else "C")


def strip_numbers(name):
    """A path of variables without the numbers that Keras gives out in order."""
    return re.sub(r"_\d+(?=/|$)", "", name)
