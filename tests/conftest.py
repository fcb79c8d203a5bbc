"""What several tests need."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

# The networks of the tests are small: a second thread costs more than it gives, many times so on busy cores.
torch.set_num_threads(1)

needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="the network is torchvision's")


@pytest.fixture
def no_gradients() -> Iterator[None]:
    """For tests that only run networks forwards; one that needs gradients turns them on again."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with trained networks (models/) and CIFAR-10 (data/), or a skip that says how to give it."""
    folder = os.environ.get("FITACT_DATA")
    if not folder:
        pytest.skip("needs trained networks and CIFAR-10: set FITACT_DATA to the folder with models/ and data/")
    return Path(folder)
