"""Put an injection node where an activation is to be hit.

y = relu(x)                 y = relu(x)                  y = relu(x)
z = bound(y)    -- after->  z = bound(y)     -- before-> y_faulty = injected(y)
v = conv(z)                 z_faulty = injected(z)       z = bound(y_faulty)
                            v = conv(z_faulty)           v = conv(z)
"""

from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from fitact_fx.aliasing import is_overwritten, written_apart
from fitact_fx.bounded import Bounded
from fitact_fx.errors import FaultError, SiteError, site_message
from fitact_fx.injected import Injected, NodeName, WordFormat
from fitact_fx.nodes import called_module
from fitact_fx.points import matching_points
from fitact_fx.source import source_line
from fitact_fx.traced import add_beside

SIDES = ("after", "before")


@dataclass(frozen=True)
class Inject:
    """Inserts a node, without faults yet, at each point that the globs `at` mean (see `points.matching_points`).

    `where`: "after" the bound, or "before" it; the same place where there is none. Every later reader gets
    the node's result. Returns the names of the nodes, such as `layer1.0.relu@after`. FaultError for a glob that
    matches nothing and for another `where`, SiteError for a point that has such a node already and for one
    whose memory is written to through another value, which a copy would part.
    """

    at: tuple[str, ...]
    format: WordFormat
    where: str = "after"
    permanent: bool = False

    def __call__(self, graph_module: GraphModule) -> tuple[str, ...]:
        if self.where not in SIDES:
            raise FaultError(f"where is {self.where!r};\n  give one of {', '.join(SIDES)}")
        scale = self.format.scale(torch.ones(2, 2))
        if scale is not None and scale.numel() > 1:
            name, remedy = self.format.name, "choose a format with one scale, such as int8"
            raise FaultError(
                f"activations are quantised per tensor, and {name} is per channel of a weight;\n  {remedy}"
            )
        points = matching_points(graph_module, self.at)
        return tuple(self._insert(graph_module, name, node) for name, node in points.items())

    def _insert(self, graph_module: GraphModule, point: str, node: Node) -> str:
        source, taken = source_line(node), {each.name for each in graph_module.modules() if isinstance(each, Injected)}
        name = str(NodeName(point, self.where, self.permanent))
        if name in taken:
            raise SiteError(site_message(name, source, "it has an injection node", "inject there once"))
        anchor = node if self.where == "before" else _end_of_chain(node)
        writer = written_apart(anchor)
        if writer is not None:
            problem = f"it shares memory with another value, and {source_line(writer)} overwrites that later"
            raise SiteError(site_message(name, source, problem, "inject at the result of that line"))
        options = {"permanent": self.permanent, "overwritten": is_overwritten(anchor)}
        injected = Injected(point, self.where, source, self.format, **options)
        target = add_beside(graph_module, anchor, f"{point}_fault_{self.where}", injected)
        with anchor.graph.inserting_after(_last_placeholder(anchor)):
            faulty = anchor.graph.call_module(target, (anchor,))
        faulty.meta = dict(anchor.meta)
        anchor.replace_all_uses_with(faulty, delete_user_cb=lambda user: user is not faulty)
        return injected.name


def _end_of_chain(node: Node) -> Node:
    """The last of the bound and the injection nodes that stand behind this node."""
    for user in node.users:
        if user.op == "call_module" and isinstance(called_module(user), Bounded | Injected):
            return _end_of_chain(user)
    return node


def _last_placeholder(node: Node) -> Node:
    """Arguments come first in a graph, so what follows one of them follows all."""
    return node if node.op != "placeholder" else [each for each in node.graph.nodes if each.op == "placeholder"][-1]
