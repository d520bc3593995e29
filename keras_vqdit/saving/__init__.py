"""Files: models saved so that a failed run never damages one, and read so that a stranger's file harms nobody."""

from keras_vqdit.saving.files import atomic_path, check_writable, load_model, save_json, save_model
from keras_vqdit.saving.preset import FromPreset, load_preset, presets

__all__ = [
    "FromPreset",
    "atomic_path",
    "check_writable",
    "load_model",
    "load_preset",
    "presets",
    "save_json",
    "save_model",
]
