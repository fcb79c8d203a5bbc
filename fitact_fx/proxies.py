"""The stand-ins for tensors that user code meets while it is traced.

torch's own stand-in lets some Python code pass without doing what it does to a tensor: `x += y` makes
a new x and leaves every other reader of the old one behind, `isinstance(x, Tensor)` is false, `x.tag = 1`
is forgotten. This one records each of them, or raises.
"""

import operator
import sys
from collections.abc import Callable
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
_SEVERAL = frozenset("chunk split tensor_split unbind topk sort max min lstm gru rnn multiheadattention".split())
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

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What `isinstance` sees: a Tensor in the model's code, and in torch's own code what it is."""
        asking = sys._getframe(1).f_code  # noqa: SLF001  the only way to know who asks
        theirs = asking.co_name == "is_tensor" or not is_torch(asking.co_filename)
        return Tensor if theirs and _is_one_tensor(self.node) else type(self)


class StandInAttribute(Attribute, StandIn):
    """Stands for an attribute of a stand-in until it is called or used."""

    __class__ = property(type)


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


def _is_one_tensor(node: Node) -> bool:
    return node.target is not getattr and called_name(node) not in _SEVERAL and not _is_number(node)
