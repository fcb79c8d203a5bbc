"""What a graph writes to in place becomes a value of its own, so that no value changes once it is there.

y = x.add_(b)            y = add_(copy of x, b)
z = conv(x)              z = conv(y)             # who reads x afterwards means the changed x
"""

from collections.abc import Sequence

from torch.fx import Node

from fitact_fx.aliasing import sharing_memory
from fitact_fx.errors import CampaignError
from fitact_fx.nodes import overwrites_input


def without_writes(nodes: Sequence[Node]) -> tuple[dict[Node, dict[Node, Node]], dict[Node, Node]]:
    """By node, which other value it reads in the place of one that was written to; writer -> what it may write to."""
    stands_for: dict[Node, Node] = {}
    reads: dict[Node, dict[Node, Node]] = {}
    exclusive: dict[Node, Node] = {}
    for node in nodes:
        reads[node] = dict(stands_for)
        if node.op in ("placeholder", "get_attr", "output") or not overwrites_input(node):
            continue
        if node.kwargs.get("out") is not None or not node.args or not isinstance(node.args[0], Node):
            raise _written(node, "it writes into another tensor (out=)")
        source = node.args[0]
        now = stands_for.get(source, source)
        group = sharing_memory(source, node, overwrites_input)
        others = {member for member in group if stands_for.get(member, member) is not now}
        if any(member.op == "get_attr" for member in group):
            raise _written(node, "it writes into a tensor of the model, which the next run reads")
        if any(node < user for member in others for user in member.users):
            raise _written(node, "it writes into memory that is read under another name afterwards")
        if not others and not any(member.op == "placeholder" for member in group):
            exclusive[node] = now
        stands_for |= dict.fromkeys([source, now, *(each for each, value in stands_for.items() if value is now)], node)
    return reads, exclusive


def _written(node: Node, problem: str) -> CampaignError:
    return CampaignError(
        f"{node.name} cannot run apart from the rest of the graph: {problem};\n"
        "  run the whole model in each trial (suffixes=False)"
    )
