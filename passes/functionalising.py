"""Let no activation overwrite its input, and let every later reader still see what it saw before.

    y = relu_(x)         y = relu(x)
    z = x + y      ->    z = y + y           # the reader of x meant the changed x

Where x shares memory with other values (it is a view, or has been viewed), readers of those mean
the changed values too, so the new value is written back and the memory stays shared:

    v = x[:, :4]         v = x[:, :4]
    y = relu_(v)   ->    y = relu(v)
    z = conv(x)          w = v.copy_(y)      # x now holds it as well
                         z = conv(x)
"""

from dataclasses import dataclass

from torch.fx import GraphModule, Node

from fitact_fx.nodes import called_name, operator_name
from fitact_fx.sites import find_sites, kind_of, make_out_of_place

# Operators whose result never shares memory with an input. Any other is taken to: a copy too many is
# slow, a copy too few is wrong.
_FRESH = frozenset(
    "conv1d conv2d conv3d convtranspose1d convtranspose2d convtranspose3d linear bilinear embedding layernorm rmsnorm "
    "batchnorm1d batchnorm2d batchnorm3d groupnorm instancenorm1d instancenorm2d instancenorm3d batch_norm layer_norm "
    "group_norm conv_transpose1d conv_transpose2d conv_transpose3d maxpool1d maxpool2d maxpool3d avgpool1d avgpool2d "
    "avgpool3d max_pool2d avg_pool2d max_pool1d avg_pool1d cat stack add sub mul truediv matmul bmm addmm neg exp "
    "softmax interpolate upsample clone".split()
)
_INPLACE_OPERATORS = frozenset("iadd isub imul itruediv ifloordiv imod ipow iand ior ixor".split())


@dataclass(frozen=True)
class Functionalise:
    """Rewrites every in-place activation of the graph; returns the names of those sites.

    A graph without any is left as it is. It changes the modules the graph calls (their `inplace`), so
    give it a graph that owns them, as `trace` does.
    """

    def __call__(self, graph_module: GraphModule) -> tuple[str, ...]:
        sites = [site for site in find_sites(graph_module) if site.inplace]
        pending = {site.node for site in sites}
        for site in sites:
            _redirect_later_readers(site.node, pending)
            pending.remove(site.node)
            make_out_of_place(site.node)
        return tuple(site.name for site in sites)


def _redirect_later_readers(node: Node, pending: set[Node]) -> None:
    """Whoever reads, after `node`, the memory that it used to overwrite, gets its result."""
    source = node.all_input_nodes[0]
    order = {each: place for place, each in enumerate(node.graph.nodes)}
    group = _sharing_memory(source, node, pending)
    later = [user for member in group for user in member.users if order[user] > order[node]]
    if not later:
        return
    if group == {source} and source.op not in ("placeholder", "get_attr"):
        source.replace_all_uses_with(node, delete_user_cb=later.__contains__)
        return
    with node.graph.inserting_after(node):
        written = node.graph.call_method("copy_", (source, node))
    written.meta = dict(node.meta)
    node.replace_all_uses_with(written, delete_user_cb=lambda user: user is not written)


def _sharing_memory(source: Node, node: Node, pending: set[Node]) -> set[Node]:
    """The values that may share memory with `source` when `node` runs; later views are readers of these."""
    group, frontier = {source}, [source]
    while frontier:
        member = frontier.pop()
        neighbours = [
            *_may_alias(member, pending),
            *(u for u in member.users if member in _may_alias(u, pending)),
        ]
        new = [each for each in neighbours if each not in group and each is not node and each < node]
        group.update(new)
        frontier.extend(new)
    return group


def _may_alias(node: Node, pending: set[Node]) -> list[Node]:
    """The inputs that this node's result may share memory with."""
    inputs = node.all_input_nodes
    if node.op == "output" or (operator_name(node) in _FRESH and not called_name(node).endswith("_")):
        return []
    if kind_of(node) is not None:
        return inputs[:1] if node in pending else []
    in_place = operator_name(node) in _INPLACE_OPERATORS or (
        node.op != "call_module" and called_name(node).endswith("_")
    )
    return inputs[:1] if in_place else inputs
