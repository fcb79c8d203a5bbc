"""Fault models: how a stored word goes wrong. One file each.

A file holds subclasses of `FaultModel` and `MODELS`, name -> a function that takes the class's options and
returns the value. Adding one is adding a file: names are looked up in the modules of this package.
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import lru_cache

from fitact_fx.errors import FaultError, known
from fitact_fx.faults.fault_model import FaultModel

__all__ = ["find_fault_model", "names"]

Maker = Callable[..., FaultModel]


def find_fault_model(name: str) -> Maker:
    """What makes the fault model called `name`, such as "bit-flip", from its options. FaultError lists the names."""
    if name not in _makers():
        raise FaultError(known("fault model", name, _makers()))
    return _makers()[name]


def names() -> tuple[str, ...]:
    """The names of all fault models."""
    return tuple(sorted(_makers()))


@lru_cache(maxsize=1)
def _makers() -> dict[str, Maker]:
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return {name: maker for module in modules for name, maker in module.MODELS.items()}
