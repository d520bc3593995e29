"""Files: models saved so that a failed run never damages one."""

from keras_vqdit.saving.files import atomic_path, check_writable, load_model, save_json, save_model

__all__ = ["atomic_path", "check_writable", "load_model", "save_json", "save_model"]
