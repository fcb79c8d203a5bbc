"""What tells models, data and functions from others, the same in every process: for a store to know its campaign."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from inspect import unwrap
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fitact_fx.source import is_torch
from fitact_fx.traced import parts as graphs_in


def parts(value: Any, path: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """What an output, or targets, are made of, each with where it stands, in order.

    Looks into mappings, sequences, dataclasses and other objects that hold attributes; not twice into one that holds
    itself.
    """
    inside = None if id(value) in above else _inside(value)
    if not inside:
        yield path, value
        return
    for key, held in inside.items():
        yield from parts(held, f"{path}/{type(value).__name__} {key!r}", (*above, id(value)))


def _inside(value: Any) -> Mapping[Any, Any] | None:
    """What stands under which key; None for what has no parts, such as a tensor or a number."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if isinstance(value, Tensor) or callable(value):
        return None
    if is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    attributes: Mapping[Any, Any] | None = getattr(value, "__dict__", None)
    return attributes


def tensor_bytes(tensor: Tensor) -> bytes:
    """Type, shape and raw values, the same for equal tensors only."""
    held = tensor.detach().cpu()
    kind = f"{held.layout}{held.dtype}{tuple(held.shape)}".encode()
    if held.is_quantized:
        held = held.dequantize()
    elif held.layout != torch.strided:
        held = held.to_dense()
    held = held.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return kind + (held.view(torch.uint8).numpy().tobytes() if held.numel() else b"")


def without_addresses(text: str) -> str:
    """Without where things lie in memory, which is elsewhere in the next process."""
    return re.sub(r"0x[0-9a-fA-F]+", "", text)


def leaf_bytes(leaf: Any) -> bytes:
    """What tells it from others, the same in every process."""
    if isinstance(leaf, Tensor):
        return tensor_bytes(leaf)
    if isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:  # what NumPy prints leaves out the middle
        return f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes()
    if isinstance(leaf, set | frozenset):  # whose order differs from process to process
        return b"set" + b"".join(sorted(map(leaf_bytes, leaf)))
    return without_addresses(repr(leaf.tolist() if isinstance(leaf, np.ndarray) else leaf)).encode()


def identical_trees(one: Any, other: Any) -> bool:
    """Whether two outputs of a model are the same, bit for bit, whatever they are made of."""
    ours, theirs = list(parts(one)), list(parts(other))
    return [path for path, _ in ours] == [path for path, _ in theirs] and all(
        identical(leaf, its) for (_, leaf), (_, its) in zip(ours, theirs, strict=True)
    )


def identical(one: Any, other: Any) -> bool:
    """Whether two values are the same, tensors bit for bit: a NaN equals itself, and -0.0 is not 0.0."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if torch.equal(one, other) and not (one.is_floating_point() and bool((one == 0).any())):
            return True
        return tensor_bytes(one) == tensor_bytes(other)
    return type(one) is type(other) and (one is other or bool(one == other))


def fingerprint(model: nn.Module) -> str:
    """128 bits of every parameter and buffer with its name, saved or not, and of what the model prints as."""
    digest = hashlib.blake2b(without_addresses(repr(model)).encode(), digest_size=16)
    held = dict(model.named_buffers(remove_duplicate=False)) | model.state_dict()
    for name, value in sorted(held.items()):
        for path, leaf in parts(value, name):
            for told in (path.encode(), leaf_bytes(leaf)):
                digest.update(len(told).to_bytes(8, "little") + told)
    return digest.hexdigest()


def code_of_model(model: nn.Module) -> str:
    """128 bits of what the model does: the code of its graphs, and of every class of module that is not torch's."""
    digest = hashlib.blake2b(digest_size=16)
    graphs = [model, *graphs_in(model).values()]
    for graph in graphs:
        if isinstance(graph, GraphModule):
            digest.update(graph.code.encode())
    for kind in sorted({type(module) for module in model.modules()}, key=lambda kind: kind.__qualname__):
        forward = getattr(kind.forward, "__code__", None)
        if forward is not None and not issubclass(kind, GraphModule) and not is_torch(forward.co_filename):
            digest.update(_code_bytes(forward))
    for path, module in model.named_modules():
        plain = {name: value for name, value in vars(module).items() if _is_plain(value) and name != "training"}
        digest.update(f"{path}{sorted(plain.items())}".encode())
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    """A number, a text, or a tuple of them: what a forward may compute with, beside tensors."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | complex | str)


def code_of_function(function: Callable[..., Any]) -> str:
    """128 bits of a function's code, with what it was given: defaults, closed-over values, arguments of a `partial`."""
    return hashlib.blake2b(_function_bytes(function, ()), digest_size=16).hexdigest()


def _function_bytes(function: Any, above: tuple[int, ...]) -> bytes:
    if id(function) in above:
        return b""
    if isinstance(function, partial):
        held = (function.args, sorted(function.keywords.items()))
        return _function_bytes(function.func, (*above, id(function))) + _value_bytes(held, (*above, id(function)))
    bound = getattr(function, "__self__", None)
    code = getattr(unwrap(function), "__code__", None)
    if code is None:  # an object that can be called, or one of C
        own = getattr(type(function).__call__, "__code__", None)
        told = without_addresses(repr(function)).encode()
        return told if own is None else told + _code_bytes(own) + _value_bytes(vars(function), (*above, id(function)))
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    given = (getattr(function, "__defaults__", None), cells, None if bound is None else type(bound).__qualname__)
    return _code_bytes(code) + _value_bytes(given, (*above, id(function)))


def _value_bytes(value: Any, above: tuple[int, ...]) -> bytes:
    told = []
    for path, leaf in parts(value):
        told.append(path.encode())
        told.append(_function_bytes(leaf, above) if callable(leaf) else leaf_bytes(leaf))
    return b"|".join(told)


def _code_bytes(code: CodeType) -> bytes:
    """What it does, whatever file and line it stands on."""
    told = [code.co_code, repr(code.co_names).encode()]
    told += [_code_bytes(each) if isinstance(each, CodeType) else leaf_bytes(each) for each in code.co_consts]
    return b"|".join(told)
