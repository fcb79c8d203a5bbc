"""Graph passes: one rewrite per file.

A pass is a frozen dataclass whose fields are its options. Calling it with a GraphModule edits that
graph and returns the names it touched. The graph is valid before and after; `apply` checks that.
"""

from typing import Protocol

from torch.fx import GraphModule

from fitact_fx.traced import parts


class GraphPass(Protocol):
    """`pass_(graph_module)` edits the graph in place and returns the names of what it touched."""

    def __call__(self, graph_module: GraphModule) -> tuple[str, ...]: ...


def apply(graph_module: GraphModule, *passes: GraphPass) -> tuple[tuple[str, ...], ...]:
    """Run the passes in order, then check and recompile the graph and its parts once; what each of them touched."""
    touched = tuple(pass_(graph_module) for pass_ in passes)
    for each in {graph_module, *parts(graph_module).values()}:
        each.graph.lint()
        each.recompile()
    return touched
