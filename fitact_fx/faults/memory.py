"""What faults can hit in a model: its parameters and its bounds, by name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fitact_fx.bounded import SIDES, Bounded
from fitact_fx.errors import FaultError
from fitact_fx.faults.formats import Format

_SHARED = "draw the list on this model, or keep what both have with faults.restricted_to(model)"


@dataclass(frozen=True, eq=False)
class Memory:
    """The targeted tensors of one model, the very objects: parameters and the bounds that are set.

    Made once, it can stand for the model in many trials; make it anew after moving the model, casting
    it or setting its bounds.

    `tensors` holds each tensor once, in the model's order, a tied one under the first of its names in
    alphabetical order: the order of registration differs between a model and its hardened variant.
    `names` holds every name.
    """

    tensors: Mapping[str, Tensor]
    names: Mapping[str, Tensor]

    @classmethod
    def of(cls, target: "nn.Module | Memory") -> "Memory":
        """The memory of a model. FaultError if it holds nothing, or a lazy parameter without a shape."""
        if isinstance(target, Memory):
            return target
        names = dict(_named_targets(target))
        if not names:
            raise FaultError(f"{type(target).__name__} has no parameters and no bounds: nothing for a fault to hit")
        for name, tensor in names.items():
            if is_lazy(tensor):
                raise FaultError(f"tensor {name!r} has no shape yet; run the model once before drawing faults")
        first: dict[int, str] = {}
        for name, tensor in names.items():
            first[id(tensor)] = min(name, first.get(id(tensor), name))
        tensors = {name: names[name] for name in first.values()}
        return cls(MappingProxyType(tensors), MappingProxyType(names))

    def find(self, name: str, shape: tuple[int, ...], stored: Format) -> Tensor:
        """The tensor called `name`. FaultError if missing, of another shape, or unable to hold `stored`."""
        tensor = self.names.get(name)
        if tensor is None:
            raise FaultError(f"the model has no tensor {name!r}{self._close_to(name)}; {_SHARED}")
        if tuple(tensor.shape) != shape:
            raise FaultError(f"tensor {name!r} has shape {tuple(tensor.shape)}; the fault list is for {shape}")
        check_holds(name, tensor, stored)
        return tensor

    def _close_to(self, name: str) -> str:
        close = get_close_matches(name, self.names)
        return f" (close: {', '.join(close)})" if close else ""


def check_holds(name: str, tensor: Tensor, stored: Format) -> None:
    """FaultError if the tensor called `name` is of a type that cannot hold numbers of the format `stored`."""
    if tensor.dtype in stored.dtypes:
        return
    found, *fitting = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, *stored.dtypes))
    raise FaultError(
        f"tensor {name!r} is {found}, which cannot hold {stored.name} numbers; "
        f"choose another format, or convert the model to {' or '.join(fitting)}"
    )


def _named_targets(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    for path, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, Bounded):
            continue
        for side in SIDES:
            bound = getattr(module, side)
            if bound is not None:
                yield f"{path}.{side}" if path else side, bound
