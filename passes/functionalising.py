"""Let no activation overwrite its input, and let every later reader still see what it saw before.

    y = relu_(x)         y = relu(x)
    z = x + y      ->    z = y + y           # the reader of x meant the changed x

Where x shares memory with other values (it is a view, or has been viewed), readers of those mean
the changed values too, so the new value is written back and the memory stays shared:

    v = x[:, :4]         v = x[:, :4]
    y = relu_(v)   ->    b = v.new_empty_strided(v.size(), v.stride()).copy_(v)
    z = conv(x)          y = relu(b)
                         w = v.copy_(y)      # x now holds it as well
                         z = conv(x)

An argument, a Parameter and a buffer are always written to: someone outside may read them later.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from fitact_fx.aliasing import sharing_memory
from fitact_fx.errors import SiteError, site_message
from fitact_fx.kinds import SELF_GATED
from fitact_fx.nodes import argument, inplace_position, overwrites_input
from fitact_fx.places import ACTIVATIONS
from fitact_fx.sites import Site, find_sites
from fitact_fx.spellings import kind_of, out_of_place

_OWNED_ELSEWHERE = ("placeholder", "get_attr")


@dataclass(frozen=True)
class Functionalise:
    """Rewrites every in-place activation of the graph, and the other sites in `also`; returns the names of those.

    A graph without any is left as it is. It changes the modules the graph calls (their `inplace`), so
    give it a graph that owns them, as `trace` does. Raises SiteError where it cannot be told whether an
    activation overwrites its input.
    """

    also: frozenset[str] = frozenset()

    def __call__(self, graph_module: GraphModule) -> tuple[str, ...]:
        sites = [site for site in find_sites(graph_module, self._is_meant) if site.inplace]
        pending = {site.node for site in sites}

        def overwrites(node: Node) -> bool:
            # The flag of a shared module goes out with its first call, for all of them.
            return node in pending or (kind_of(node) is None and overwrites_input(node))

        for site in sites:
            _refuse_undecided(site)
            _redirect_later_readers(site.node, overwrites)
            pending.remove(site.node)
            out_of_place(site.node)
            if ACTIVATIONS not in site.places or site.kind == SELF_GATED.name:
                _keep_type(site.node)
        return tuple(site.name for site in sites)

    def _is_meant(self, site: Site) -> bool:
        return ACTIVATIONS in site.places or site.name in self.also


def _refuse_undecided(site: Site) -> None:
    if "out" in site.node.kwargs:
        problem = "it writes its result into another tensor (out=)"
        raise SiteError(site_message(site.name, site.source, problem, "assign its result instead"))
    if isinstance(argument(site.node, inplace_position(site.node), "inplace"), Node):
        problem = "whether it overwrites its input is decided while the model runs, or by the training mode"
        raise SiteError(site_message(site.name, site.source, problem, "give its inplace flag as a constant"))


def _redirect_later_readers(node: Node, overwrites: Callable[[Node], bool]) -> None:
    """Whoever reads, after `node`, the memory that it used to overwrite, gets its result."""
    source = node.all_input_nodes[0]
    group = sharing_memory(source, node, overwrites)
    outside = any(member.op in _OWNED_ELSEWHERE for member in group)
    later = {user for member in group for user in member.users if node < user}
    if group == {source} and not outside:
        source.replace_all_uses_with(node, delete_user_cb=later.__contains__)
    elif later or outside:
        _write_back(node, source)


def _keep_type(node: Node) -> None:
    """What is computed in place keeps its type; out of place, a sum has the wider one of its operands."""
    with node.graph.inserting_after(node):
        cast = node.graph.call_method("type_as", (node, node.all_input_nodes[0]))
    cast.meta = dict(node.meta)
    node.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)


def _write_back(node: Node, source: Node) -> None:
    graph = node.graph
    with graph.inserting_before(node):
        # The activation may keep its input for the backward pass, so that input must not change. A clone would be dense
        # where the view is not, and torch computes sigmoid and others with another rounding there.
        layout = (graph.call_method("size", (source,)), graph.call_method("stride", (source,)))
        empty = graph.call_method("new_empty_strided", (source, *layout))
        before = graph.call_method("copy_", (empty, source))
    with graph.inserting_after(node):
        written = graph.call_method("copy_", (source, node))
    for new in (*layout, empty, before, written):
        new.meta = dict(node.meta)
    node.replace_input_with(source, before)
    node.replace_all_uses_with(written, delete_user_cb=lambda user: user is not written)
