"""A file on disk is the old one or the new one, never half of one."""

import json

import keras
import numpy as np
import pytest

from keras_vqdit import saving


def tiny(value=1.0):
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(value))]
    )
    return model


def test_save_and_load(tmp_path):
    path = tmp_path / "new folder" / "model.keras"
    saving.save_model(tiny(2.0), path)
    np.testing.assert_array_equal(saving.load_model(path).get_weights()[0], np.full((2, 1), 2.0))
    assert [p.name for p in path.parent.iterdir()] == ["model.keras"]


def test_a_failed_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "model.keras"
    saving.save_model(tiny(1.0), path)
    before = path.read_bytes()

    def fail_halfway(self, target, **kwargs):
        target.write_bytes(b"half a mod")
        raise OSError("No space left on device")

    monkeypatch.setattr(keras.Sequential, "save", fail_halfway)
    with pytest.raises(OSError, match="No space"):
        saving.save_model(tiny(2.0), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


def test_what_is_not_finite_is_not_saved(tmp_path):
    saving.save_model(tiny(1.0), tmp_path / "model.keras")
    with pytest.raises(ValueError, match="must hold finite weights"):
        saving.save_model(tiny(np.nan), tmp_path / "model.keras")
    np.testing.assert_array_equal(saving.load_model(tmp_path / "model.keras").get_weights()[0], 1.0)


def test_a_failed_json_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "metrics.json"
    saving.save_json({"psnr": 20.0}, path)
    with pytest.raises(TypeError):
        saving.save_json({"psnr": object()}, path)
    assert json.loads(path.read_text()) == {"psnr": 20.0}


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.keras"):
        saving.load_model(tmp_path / "nothing.keras")
    (tmp_path / "broken.keras").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="broken.keras is damaged, or no .keras file"):
        saving.load_model(tmp_path / "broken.keras")
    saving.save_model(tiny(), tmp_path / "model.keras")
    with pytest.raises(ValueError, match="must hold a Functional. It holds a Sequential"):
        saving.load_model(tmp_path / "model.keras", keras.src.models.functional.Functional)
    with pytest.raises(ValueError, match="must end in '.keras'"):
        saving.save_model(tiny(), tmp_path / "model.h5")


def test_a_link_stays_a_link_and_permissions_stay(tmp_path):
    path = tmp_path / "model.keras"
    saving.save_model(tiny(1.0), path)
    path.chmod(0o600)
    link = tmp_path / "latest.keras"
    link.symlink_to(path)
    saving.save_model(tiny(2.0), link)
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o600
    np.testing.assert_array_equal(saving.load_model(path).get_weights()[0], np.full((2, 1), 2.0))


def test_what_can_not_be_written_is_told_before(tmp_path):
    saving.check_writable(tmp_path / "new" / "model.keras")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(IsADirectoryError, match="must be a file, but is a folder"):
        saving.check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        saving.check_writable(tmp_path / "file" / "model.keras")
