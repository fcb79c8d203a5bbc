"""One graph for both training modes.

Tracing runs `forward` once, so whatever reads `self.training` is frozen: the flag in
`F.dropout(x, training=self.training)`, the rate in `p if self.training else 0.0`. A model is
therefore traced in both modes. Where the two graphs differ only in constants, each becomes a call
of a `ModeConstant`, which looks at its own `training` flag; where they differ in shape, there is
no common graph.
"""

from typing import Any

from torch import nn
from torch.fx import Graph, Node

from fitact_fx.source import owner_path, source_line

_SCALAR = bool | int | float | str


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


class ModesDifferError(Exception):
    """The two graphs do different things, beginning at `where`."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where


def merge(root: nn.Module, training: Graph, evaluation: Graph) -> Graph:
    """One graph that does in each mode what the graph traced in that mode does.

    Edits and returns `evaluation`; adds `ModeConstant`s to the modules of `root` whose code reads the
    flag. Raises ModesDifferError where no constant can tell the two apart.
    """
    pairs = dict(zip(training.nodes, evaluation.nodes, strict=False))
    for ours, theirs in pairs.items():
        if (ours.op, ours.target) != (theirs.op, theirs.target):
            raise ModesDifferError(source_line(ours if theirs.op == "output" else theirs))
    if len(training.nodes) != len(evaluation.nodes):
        longer = max((training, evaluation), key=lambda graph: len(graph.nodes))
        raise ModesDifferError(source_line(list(longer.nodes)[len(pairs)]))
    for ours, theirs in pairs.items():
        merged = _Merge(root, pairs, theirs)
        theirs.args, theirs.kwargs = merged(ours.args, theirs.args), merged(ours.kwargs, theirs.kwargs)
    return evaluation


class _Merge:
    """Merges the arguments of one pair of nodes."""

    def __init__(self, root: nn.Module, pairs: dict[Node, Node], node: Node) -> None:
        self.root, self.pairs, self.node = root, pairs, node

    def __call__(self, ours: Any, theirs: Any) -> Any:
        if isinstance(ours, Node) and self.pairs.get(ours) is theirs:
            return theirs
        if isinstance(ours, _SCALAR) and isinstance(theirs, _SCALAR):
            return theirs if ours == theirs else self._constant(ours, theirs)
        if type(ours) is not type(theirs):
            raise ModesDifferError(source_line(self.node))
        if isinstance(ours, dict) and list(ours) == list(theirs):
            return {key: self(ours[key], theirs[key]) for key in ours}
        if isinstance(ours, tuple | list) and len(ours) == len(theirs):
            return type(theirs)(self(*pair) for pair in zip(ours, theirs, strict=True))
        if isinstance(ours, slice):
            return slice(self(ours.start, theirs.start), self(ours.stop, theirs.stop), self(ours.step, theirs.step))
        if isinstance(ours, Node) or ours != theirs:
            raise ModesDifferError(source_line(self.node))
        return theirs

    def _constant(self, training: object, evaluation: object) -> Node:
        path = owner_path(self.node)
        owner = self.root.get_submodule(path)
        taken = sum(isinstance(child, ModeConstant) for child in owner.children())
        name = f"by_mode_{taken}"
        owner.add_module(name, ModeConstant(training, evaluation).train(owner.training))
        with self.node.graph.inserting_before(self.node):
            node = self.node.graph.call_module(f"{path}.{name}" if path else name)
        node.meta = dict(self.node.meta)
        return node
