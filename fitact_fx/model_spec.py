"""A model and its inputs from the words on a command line."""

import importlib
import inspect
import math
import sys
import warnings
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from fitact_fx.errors import FitactError


def load_model(spec: str) -> nn.Module:
    """The model that `torchvision:NAME` or `package.module:factory` stands for, with random weights.

    The factory is called without arguments; modules in the current folder can be imported. Raises
    FitactError for a SPEC of another form, one that cannot be found, and what is not an nn.Module.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise FitactError(
            f"SPEC {spec!r} names no model;\n  write torchvision:NAME, or package.module:factory for a model of yours"
        )
    model = _from_torchvision(name) if module_name == "torchvision" else made_by(spec, module_name, name)
    if not isinstance(model, nn.Module):
        raise FitactError(f"{spec} gives a {type(model).__name__} and not an nn.Module")
    return model


def _from_torchvision(name: str) -> object:
    try:
        from torchvision.models import get_model_builder, list_models
    except ImportError as error:
        raise FitactError(f"{name} is torchvision's, which does not import here ({error})") from error
    if name not in list_models():
        close = get_close_matches(name, list_models()) or ["resnet50", "mobilenet_v3_large", "vit_b_16"]
        raise FitactError(f"torchvision has no model {name!r};\n  it has {', '.join(close)} and others")
    build = get_model_builder(name)
    takes = inspect.signature(build).parameters
    with warnings.catch_warnings(action="ignore"):  # how weights are initialised is of no interest here
        # Nothing may be downloaded: some detection models fetch a trained backbone by default.
        return build(**{option: None for option in ("weights", "weights_backbone") if option in takes})


def made_by(spec: str, module_name: str, name: str) -> object:
    """What the user's own `module_name:name` is, or gives when called. FitactError with what their code raised."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's own code lies in the current folder
    try:
        factory: Any = importlib.import_module(module_name)
        for part in name.split("."):
            factory = getattr(factory, part)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise FitactError(f"cannot find {spec}:\n  {type(error).__name__}: {error}") from error
    if isinstance(factory, nn.Module) or not callable(factory):
        return factory
    try:
        return factory()
    except Exception as error:  # the user's code again
        raise FitactError(f"{spec}, called without arguments, raised\n  {type(error).__name__}: {error}") from error


def example_input(text: str) -> Tensor:
    """`1,3,224,224` as float32 numbers in [0, 1), `1,128:int64` as zeros (a valid index anywhere).

    Raises FitactError for anything else.
    """
    sizes, _, type_name = text.partition(":")
    dtype = getattr(torch, type_name or "float32", None)
    try:
        shape = [int(size) for size in sizes.split(",")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1 or not isinstance(dtype, torch.dtype):
        raise FitactError(f"{text!r} is no input shape;\n  write 1,3,224,224, or 1,128:int64 where it is not float32")
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    values = torch.arange(math.prod(shape), dtype=torch.float64)  # no generator: the global one is the user's
    return (values * 0.618033988749895 % 1).reshape(shape).to(dtype)
