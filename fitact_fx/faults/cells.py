"""Everything in a model that can be hit, once each, under all of its names."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fitact_fx import codes
from fitact_fx.bounded import SIDES, Bounded
from fitact_fx.errors import FaultError
from fitact_fx.faults.activation_cell import ActivationCell
from fitact_fx.faults.formats import Format, find_format
from fitact_fx.faults.raw_words import Extent, extent_of, span_of
from fitact_fx.faults.tensor_cell import COMPILED, TensorCell
from fitact_fx.injected import Injected
from fitact_fx.parameter_limits import COPIES, Limits

Cell = TensorCell | ActivationCell


def uncompiled(model: nn.Module) -> nn.Module:
    """What torch.compile wraps, under whose own names everything is."""
    if not isinstance(model, nn.Module):
        raise FaultError(f"faults hit an nn.Module; got a {type(model).__name__}")
    inner = model._modules.get(COMPILED)
    return model if inner is None else uncompiled(inner)


def tensor_cells(model: nn.Module, known: Mapping[str, Cell]) -> Iterator[TensorCell]:
    """Each tensor once; what is `known` of one that is still in its place, its scales, goes on."""
    found: dict[Extent, tuple[str, Tensor, Format | None]] = {}
    names: defaultdict[Extent, list[str]] = defaultdict(list)
    for kind, name, tensor, own in _named_tensors(model):
        if is_lazy(tensor):
            raise FaultError(f"tensor {name!r} has no shape yet; run the model once before drawing faults")
        extent = extent_of(tensor)
        found.setdefault(extent, (kind, tensor, own))
        names[extent].append(name.replace(f"{COMPILED}.", ""))
    overlaps = _overlaps({min(names[extent]): tensor for extent, (_, tensor, _) in found.items()})
    for extent, (kind, tensor, own) in found.items():
        name, every = min(names[extent]), tuple(names[extent])
        before = known.get(name)
        same = isinstance(before, TensorCell) and before.extent == extent and before.tensor is tensor
        scales = before.scales if same and isinstance(before, TensorCell) else {}
        counted = not tensor.is_inference()
        yield TensorCell(
            name, kind, every, tensor, tuple(tensor.shape), extent, counted, overlaps.get(name), scales, own
        )


def _overlaps(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> name of another tensor that lies over part of the same memory."""
    spans = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + span_of(tensor) * tensor.element_size(), name)
        for name, tensor in tensors.items()
        if tensor.numel() and tensor.data_ptr()
    )
    overlaps: dict[str, str] = {}
    furthest, owner = 0, ""
    for start, end, name in spans:
        if start < furthest:
            overlaps |= {name: owner, owner: name}
        if end > furthest:
            furthest, owner = end, name
    return overlaps


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor, Format | None]]:
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield "parameters", name, parameter, None
    for path, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            kind = "bounds" if _is_bound(module, name) else "buffers"
            # What is not saved is made again by the code, or by tracing: variants of a model do not share it.
            if buffer is None or name in module._non_persistent_buffers_set:
                continue
            own = codes.words_of(name) if kind == "bounds" and isinstance(module, Bounded) else None
            if own is not None or _holds_numbers(buffer):
                stored = None if own is None else find_format(own)
                yield kind, f"{path}.{name}" if path else name, buffer, stored


def _is_bound(module: nn.Module, name: str) -> bool:
    """Whether a buffer is part of a protection: a bound, or a copy of a parameter's limits."""
    own = name in SIDES or codes.words_of(name) is not None
    return (isinstance(module, Bounded) and own) or (isinstance(module, Limits) and name in COPIES)


def _holds_numbers(buffer: Tensor) -> bool:
    """Whether a network computes with it: counters, indices and masks are kept in other types."""
    return buffer.numel() > 0 and (buffer.is_floating_point() or buffer.dtype == torch.int8)


def activation_cells(model: nn.Module) -> Iterator[ActivationCell]:
    """Each injection node that knows the shape of its activations."""
    for module in model.modules():
        if isinstance(module, Injected) and module.shape is not None:
            yield ActivationCell(module, module.shape)
