"""One graph for both training modes.

Tracing runs `forward` once, so whatever reads `self.training` is frozen: the flag in
`F.dropout(x, training=self.training)`, the rate in `p if self.training else 0.0`. A model is
therefore traced in both modes. Where the two graphs differ only in constants, each becomes a call
of a `ModeConstant`, which looks at its own `training` flag; where they differ in shape, there is
no common graph.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from fitact_fx.source import owner_path, source_line

_SCALAR = bool | int | float | str | None


class ModeConstant(nn.Module):
    """Gives one value in training mode and another in evaluation mode."""

    def __init__(self, training_value: object, evaluation_value: object) -> None:
        super().__init__()
        self.training_value = training_value
        self.evaluation_value = evaluation_value

    def forward(self) -> object:
        return self.training_value if self.training else self.evaluation_value

    def extra_repr(self) -> str:
        return f"{self.training_value!r} in training, {self.evaluation_value!r} in evaluation"


class GraphsDifferError(Exception):
    """The two graphs do different things, beginning at `where`, in the code of the module at path `owner`."""

    def __init__(self, where: str, owner: str) -> None:
        super().__init__(where)
        self.where = where
        self.owner = owner


def merge(root: nn.Module, training: Graph, evaluation: Graph) -> Graph:
    """One graph that does in each mode what the graph traced in that mode does.

    Edits and returns `evaluation`; adds `ModeConstant`s to the modules of `root` whose code reads the
    flag. Raises GraphsDifferError where no constant can tell the two apart.
    """
    pairs = _paired(root, list(training.nodes), list(evaluation.nodes), exact=True)
    for ours, theirs in pairs.items():
        merged = _Merge(pairs, theirs, root)
        theirs.args, theirs.kwargs = merged(ours.args, theirs.args), merged(ours.kwargs, theirs.kwargs)
    return evaluation


def require_same(root: nn.Module, ours: Graph, theirs: Graph) -> None:
    """Raises GraphsDifferError unless both do the same in the modes that the modules of `root` are in.

    A ModeConstant is as good as its value. Tensors made in forward may differ by rounding.
    """
    kept = [[node for node in graph.nodes if _mode_constant(root, node) is None] for graph in (ours, theirs)]
    pairs = _paired(root, *kept, exact=False)
    for one, other in pairs.items():
        compare = _Merge(pairs, other, root, comparing=True)
        compare(one.args, other.args)
        compare(one.kwargs, other.kwargs)


def _paired(root: nn.Module, ours: list[Node], theirs: list[Node], *, exact: bool) -> dict[Node, Node]:
    pairs = dict(zip(ours, theirs, strict=False))
    for one, other in pairs.items():
        if not _same_call(root, one, other, exact):
            raise _differ(one if other.op == "output" else other)
    if len(ours) != len(theirs):
        raise _differ(max((ours, theirs), key=len)[len(pairs)])
    return pairs


def _differ(node: Node) -> GraphsDifferError:
    """At the user's line; what forward returns has none of its own, so the last one recorded before it."""
    before = next((each for each in reversed(node.graph.nodes) if each.stack_trace), None)
    if node.op != "output" or before is None:
        return GraphsDifferError(source_line(node), owner_path(node))
    return GraphsDifferError(f"in what forward returns, after {source_line(before)}", "")


def _same_call(root: nn.Module, ours: Node, theirs: Node, exact: bool) -> bool:
    if (ours.op, ours.target) == (theirs.op, theirs.target):
        return True
    if not ours.op == theirs.op == "get_attr":
        return False
    one, other = (_attribute(root, str(node.target)) for node in (ours, theirs))
    # Each tracing makes the constants of forward anew, under other names.
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return False
    if isinstance(one, nn.Parameter) or isinstance(other, nn.Parameter) or exact:
        return one.dtype == other.dtype and torch.equal(one, other)
    return torch.allclose(one.double(), other.double(), rtol=2**-5, atol=1e-3, equal_nan=True)


def _attribute(root: nn.Module, path: str) -> object:
    owner, _, name = path.rpartition(".")
    return getattr(root.get_submodule(owner), name)


def _mode_constant(root: nn.Module, node: Node) -> ModeConstant | None:
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, ModeConstant) else None


class _Merge:
    """Merges (or only compares) the arguments of one pair of nodes."""

    def __init__(self, pairs: dict[Node, Node], node: Node, root: nn.Module, *, comparing: bool = False) -> None:
        self.pairs, self.node, self.root, self.comparing = pairs, node, root, comparing

    def __call__(self, ours: Any, theirs: Any) -> Any:
        if isinstance(ours, Node) and self.pairs.get(ours) is theirs:
            return theirs
        if self.comparing:
            ours, theirs = self._value(ours), self._value(theirs)
        if isinstance(ours, _SCALAR) and isinstance(theirs, _SCALAR):
            return theirs if _same_scalar(ours, theirs) else self._constant(ours, theirs)
        if type(ours) is not type(theirs):
            raise _differ(self.node)
        if isinstance(ours, dict) and list(ours) == list(theirs):
            return {key: self(ours[key], theirs[key]) for key in ours}
        if isinstance(ours, tuple | list) and len(ours) == len(theirs):
            return type(theirs)(self(*pair) for pair in zip(ours, theirs, strict=True))
        if isinstance(ours, slice):
            return slice(self(ours.start, theirs.start), self(ours.stop, theirs.stop), self(ours.step, theirs.step))
        if isinstance(ours, Node) or ours != theirs:
            raise _differ(self.node)
        return theirs

    def _value(self, argument: Any) -> Any:
        constant = _mode_constant(self.root, argument) if isinstance(argument, Node) else None
        return argument if constant is None else constant()

    def _constant(self, training: object, evaluation: object) -> Node:
        if self.comparing:
            raise _differ(self.node)
        path = owner_path(self.node)
        owner = self.root.get_submodule(path)
        taken = sum(isinstance(child, ModeConstant) for child in owner.children())
        name = f"by_mode_{taken}"
        owner.add_module(name, ModeConstant(training, evaluation).train(owner.training))
        with self.node.graph.inserting_before(self.node):
            node = self.node.graph.call_module(f"{path}.{name}" if path else name)
        node.meta = dict(self.node.meta)
        return node


def _same_scalar(ours: object, theirs: object) -> bool:
    return type(ours) is type(theirs) and (ours == theirs or (ours != ours and theirs != theirs))
