"""Trained weights from a safetensors file into a model, or one error that says what does not fit."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fitact_fx.errors import FitactError

SHOWN = 4  # names an error lists before it only counts


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Fill `model` in place from a safetensors file and return it; float16 is widened to the model's type.

    Names and shapes must match exactly, except that the file may lack `num_batches_tracked`:
    it takes no part in inference. Nothing is written unless everything fits.

    Raises:
        FitactError: no such file, not a safetensors file, or names or shapes that do not match.
    """
    path = Path(path)
    if not path.is_file():
        raise FitactError(f"no weights at {path}: give the path of a safetensors file")
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise FitactError(f"{path} is not a safetensors file: {error}") from error
    own = model.state_dict()
    differences = _differences(stored, own)
    if differences:
        raise FitactError(f"{path} does not fit this {type(model).__name__}:\n  " + ";\n  ".join(differences))
    model.load_state_dict(own | stored)
    return model


def _differences(stored: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    missing = [name for name in own.keys() - stored.keys() if not name.endswith(".num_batches_tracked")]
    unknown = list(stored.keys() - own.keys())
    reshaped = [name for name in own.keys() & stored.keys() if own[name].shape != stored[name].shape]
    found = {"not in the file": missing, "not in the model": unknown, "of another shape": reshaped}
    return [f"{what}: {_some(names)}" for what, names in found.items() if names]


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + rest
