import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from pathlib import Path

import keras
import pytest

# Data sets beside the checkout, or where the variable says.
SHARED_DATA = Path(os.environ.get("KERAS_VQDIT_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(items):
    """The tests that start processes first: they take longest, and would keep one worker of several waiting at the end."""
    items.sort(key=lambda item: item.path.parent.name != "training")


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data sets; tests that ask for it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no data sets at {SHARED_DATA}; set KERAS_VQDIT_DATA to their folder")
    return SHARED_DATA
