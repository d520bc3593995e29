"""Files: models saved so that a failed run never damages one, and read so that a stranger's file harms nobody."""

from keras_vqdit.saving.export import Endpoint, export, inspect
from keras_vqdit.saving.files import atomic_path, check_writable, load_model, save_json, save_model
from keras_vqdit.saving.preset import FromPreset, find_preset, load_preset, presets, read_card
from keras_vqdit.saving.strict import read_json, short

__all__ = [
    "Endpoint",
    "FromPreset",
    "atomic_path",
    "check_writable",
    "export",
    "find_preset",
    "inspect",
    "load_model",
    "load_preset",
    "presets",
    "read_card",
    "read_json",
    "save_json",
    "save_model",
    "short",
]
