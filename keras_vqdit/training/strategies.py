"""Strategies and devices by name, for the command line and for scripts."""

import contextlib
import json
import os

import keras

MAX_DEVICES = 256
TF_CONFIG = (
    '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", "index": 0}}, the same on every machine '
    "but for the index"
)


def make_strategy(name, devices=None):
    """Make a `tf.distribute` strategy.

    Args:
        name: `"none"`, `"mirrored"` (all devices of this machine) or `"multiworker"` (several machines, as the environment
            variable `TF_CONFIG` lists them).
        devices: of `"mirrored"`, such as `["gpu:0", "gpu:1"]`. CPU devices that are not there yet, such as `"cpu:1"`, are
            made, which must happen before TensorFlow's first computation. Defaults to `None`: all GPUs, or the CPU.

    Returns:
        The strategy, or `None`.

    Raises:
        ValueError: if the name is unknown, a device does not exist, `TF_CONFIG` is missing or malformed, or another backend than
            TensorFlow is active.

    Example:

    ```python
    strategy = kv.training.make_strategy("mirrored", ["cpu:0", "cpu:1"])
    with kv.training.scope(strategy):
        tokenizer = kv.VQVAE.from_size("digits")
        tokenizer.compile("adam")
    ```
    """
    if name not in ("none", "mirrored", "multiworker"):
        raise ValueError(f"`name` must be 'none', 'mirrored' or 'multiworker'. Received: name={name!r}")
    if devices is not None and name != "mirrored":
        raise ValueError(f"`devices` are for the strategy 'mirrored'. Received: name={name!r}, devices={devices}")
    if name == "none":
        return None
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "Strategies are TensorFlow's; on JAX use `keras.distribution`. "
            f"Received: name={name!r} on the backend {keras.backend.backend()!r}"
        )
    import tensorflow as tf

    if name == "multiworker":
        _check_cluster()
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.MirroredStrategy(None if devices is None else _devices(devices))


def scope(strategy):
    """The scope in which models are made and compiled; that of no strategy is empty."""
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def is_writer(strategy):
    """Whether this process writes files: of several workers, the first one."""
    return strategy is None or strategy.extended.should_checkpoint


def _devices(names):
    """The names as TensorFlow has them, with as many CPU devices as they ask for."""
    import tensorflow as tf

    parts = [str(name).strip().lower().removeprefix("/").split(":") for name in names]
    if not parts or any(len(p) != 2 or p[0] not in ("cpu", "gpu") or not p[1].isdecimal() for p in parts):
        raise ValueError(f"`devices` must look like cpu:0 or gpu:1. Received: devices={list(names)}")
    numbers = [(kind, int(number)) for kind, number in parts]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"`devices` must be different ones. Received: devices={list(names)}")
    if any(number >= MAX_DEVICES for _, number in numbers):
        raise ValueError(f"`devices` must be numbered below {MAX_DEVICES}. Received: devices={list(names)}")
    wanted = 1 + max((number for kind, number in numbers if kind == "cpu"), default=-1)
    if wanted > 1:
        (cpu,) = tf.config.list_physical_devices("CPU")
        with contextlib.suppress(RuntimeError):  # too late to make more; what there is is checked below
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * wanted)
    known = {device.name.lower().removeprefix("/device:") for device in tf.config.list_logical_devices()}
    missing = [f"{kind}:{number}" for kind, number in numbers if f"{kind}:{number}" not in known]
    if missing:
        raise ValueError(f"`devices` must be among {sorted(known)}. Received: {', '.join(missing)}")
    return [f"/{kind}:{number}" for kind, number in numbers]


def _check_cluster():
    text = os.environ.get("TF_CONFIG")
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
        valid = workers and task["type"] in ("worker", "chief") and 0 <= int(task["index"]) < len(workers)
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f"The environment variable TF_CONFIG must list the workers, as {TF_CONFIG}. Received: TF_CONFIG={text}"
        )
