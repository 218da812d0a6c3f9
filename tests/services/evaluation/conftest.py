"""The tiny model, loaded once for all tests of the evaluation."""

import pytest

from services.runtime.model.served_model import load_model


@pytest.fixture(scope="session")
def served(tiny_model):
    return load_model(str(tiny_model))
