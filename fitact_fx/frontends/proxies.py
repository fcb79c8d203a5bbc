"""The stand-ins for tensors that user code meets while it is traced.

torch's own stand-in lets some Python code pass without doing what it does to a tensor: `x += y` makes
a new x and leaves every other reader of the old one behind, `isinstance(x, Tensor)` is false, `x.tag = 1`
is forgotten. This one records each of them, or raises.

Only Python code may take a stand-in for a tensor. A `__class__` that says Tensor is believed by torch's
C code too, which then reads memory that is not there; so it is `isinstance` that answers otherwise.
"""

import builtins
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node, Proxy, Tracer
from torch.fx.proxy import Attribute

from fitact_fx.nodes import called_name
from fitact_fx.source import is_torch

_OWN = frozenset(("tracer", "node", "root", "attr", "_node", "tensor"))
_SIZES = frozenset("shape ndim size dim numel nelement ndimension stride item tolist len".split())
# Their results are several tensors in a tuple.
_SEVERAL = frozenset("chunk split tensor_split unbind topk sort lstm gru rnn multiheadattention".split())
_SEVERAL_ALONG_A_DIMENSION = frozenset(("max", "min", "median", "mode"))
_INTEGERS = frozenset("ndim dim numel nelement ndimension len".split())
_IN_PLACE = {
    "__iadd__": "add_",
    "__isub__": "sub_",
    "__imul__": "mul_",
    "__itruediv__": "div_",
    "__ifloordiv__": "floor_divide_",
    "__imod__": "remainder_",
    "__ipow__": "pow_",
    "__iand__": "bitwise_and_",
    "__ior__": "bitwise_or_",
    "__ixor__": "bitwise_xor_",
}


class StandIn(Proxy):
    """Stands for the value of a node: a tensor, or a size read from one."""

    def __getattr__(self, name: str) -> "StandInAttribute":
        return StandInAttribute(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _OWN:
            raise TypeError(f"forward sets {name!r} on a tensor, which a graph would lose")
        super().__setattr__(name, value)

    def __setitem__(self, index: object, value: object) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


class StandInAttribute(Attribute, StandIn):
    """Stands for an attribute of a stand-in until it is called or used."""


class KnownTensor(StandIn):
    """Stands for a Parameter or buffer, whose shape is a constant of the model: code may branch on it."""

    def __init__(self, node: Node, tracer: Tracer, tensor: Tensor) -> None:
        super().__init__(node, tracer)
        self.tensor = tensor

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    @property
    def ndim(self) -> int:
        return self.tensor.ndim

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.tensor.size() if dim is None else self.tensor.size(dim)

    def dim(self) -> int:
        return self.tensor.ndim

    def numel(self) -> int:
        return self.tensor.numel()

    def __len__(self) -> int:
        return len(self.tensor)


def _in_place_operator(method: str) -> Callable[[StandIn, object], Any]:
    def change(self: StandIn, other: object) -> Any:
        if _is_number(self.node):
            return NotImplemented  # Python then rebinds the name, as it does for numbers
        return self.tracer.create_proxy("call_method", method, (self, other), {})

    return change


for _operator, _method in _IN_PLACE.items():
    setattr(StandIn, _operator, _in_place_operator(_method))


def _is_number(node: Node) -> bool:
    """Whether this is a size, or computed from sizes alone."""
    if (node.args[1] if node.target is getattr else called_name(node)) in _SIZES:
        return True
    arithmetic = node.op == "call_function" and getattr(node.target, "__module__", "") in ("_operator", "math")
    return arithmetic and bool(node.all_input_nodes) and all(map(_is_number, node.all_input_nodes))


@contextmanager
def taken_for_what_they_stand_for(own_files: frozenset[str]) -> Iterator[None]:
    """`isinstance` answers the model's code as it would for the value itself; torch's code and `own_files` as ever."""
    plain = builtins.isinstance

    def answer(value: object, classes: Any, /) -> bool:
        if not plain(value, StandIn):
            return plain(value, classes)
        asking = sys._getframe(1).f_code  # noqa: SLF001  the only way to know who asks
        ours = asking.co_filename in own_files or (is_torch(asking.co_filename) and asking.co_name != "is_tensor")
        return plain(value, classes) if ours else _would_be(value, classes)

    builtins.isinstance = answer
    try:
        yield
    finally:
        builtins.isinstance = plain


def _would_be(value: Any, classes: Any) -> bool:
    if type(value) is KnownTensor:
        return isinstance(value.tensor, classes)
    answers = {issubclass(each, classes) for each in _possible_types(value)}
    if len(answers) != 1:
        raise TypeError(f"forward asks whether a value is a {classes}, which is not known of it")
    return answers.pop()


def _possible_types(value: Any) -> tuple[type, ...]:
    if type(value) is StandInAttribute:
        # Its node is only made when it is used: asking must not use it.
        if _possible_types(value.root) == (tuple,):
            return (Tensor,)  # x.topk(2).values
        example = torch.empty(0, 0)
        return (type(getattr(example, value.attr)),) if hasattr(example, value.attr) else ()
    node = value.node
    name = called_name(node)
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if _is_number(node):
        return _number_types(node, name, dim)
    if name in _SEVERAL or (name in _SEVERAL_ALONG_A_DIMENSION and type(dim) is int):
        return (tuple,)
    return (Tensor,)


def _number_types(node: Node, name: str, dim: object) -> tuple[type, ...]:
    if name in _INTEGERS or (name == "size" and dim is not None):
        return (int,)
    if name == "size" or (node.target is operator.getitem and type(dim) is slice):
        return (torch.Size,)
    return (int,) if node.target is operator.getitem else (int, float, torch.Size, list)
