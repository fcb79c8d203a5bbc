"""Which values of a graph may share memory, so that writing to one changes the others."""

from collections.abc import Callable

from torch.fx import GraphModule, Node

from fitact_fx.nodes import operator_name, overwrites_input, owning_module
from fitact_fx.refusals import changed_constant
from fitact_fx.spellings import kind_of

# Operators whose result never shares memory with an input. Any other is taken to: a copy too many is
# slow, a copy too few is wrong.
_FRESH = frozenset(
    "conv1d conv2d conv3d convtranspose1d convtranspose2d convtranspose3d linear bilinear embedding layernorm rmsnorm "
    "batchnorm1d batchnorm2d batchnorm3d groupnorm instancenorm1d instancenorm2d instancenorm3d batch_norm layer_norm "
    "group_norm conv_transpose1d conv_transpose2d conv_transpose3d maxpool1d maxpool2d maxpool3d avgpool1d avgpool2d "
    "avgpool3d max_pool2d avg_pool2d max_pool1d avg_pool1d cat stack add sub mul truediv matmul bmm addmm neg exp "
    "softmax interpolate upsample clone new_empty_strided size stride limits".split()
)


def aliased_inputs(node: Node, overwrites: Callable[[Node], bool]) -> list[Node]:
    """The inputs that this node's result may share memory with.

    `overwrites` says of a node whether it changes its first input: who rewrites a graph may know more.
    """
    inputs = node.all_input_nodes
    if overwrites(node):
        return inputs[:1]
    fresh = node.op == "output" or operator_name(node) in _FRESH or kind_of(node) is not None
    return [] if fresh else inputs


def sharing_memory(source: Node, before: Node, overwrites: Callable[[Node], bool]) -> set[Node]:
    """The values that may share memory with `source` when `before` runs; views taken later are not among them."""
    group, frontier = {source}, [source]
    while frontier:
        member = frontier.pop()
        views = [user for user in member.users if member in aliased_inputs(user, overwrites)]
        new = [each for each in (*aliased_inputs(member, overwrites), *views) if each not in group and each < before]
        group.update(new)
        frontier.extend(new)
    return group


def own_constants(graph_module: GraphModule, made_in_forward: Callable[[str], bool]) -> None:
    """Where a tensor made in forward is changed there, let every run change a copy of its own.

    `forward` makes it anew each time, and a graph makes it once. TracingError if another such tensor is a
    view of the same memory, which the copies would part.
    """
    graph = graph_module.graph
    first: dict[object, Node] = {}
    for node in list(graph.nodes):
        constant = node.op == "get_attr" and made_in_forward(str(node.target))
        if constant and first.setdefault(node.target, node) is not node:
            node.replace_all_uses_with(first[node.target])
            graph.erase_node(node)
    for node in first.values():
        group = sharing_memory(node, next(reversed(graph.nodes)), overwrites_input)
        if any(overwrites_input(member) for member in group):
            if any(_storage(other) == _storage(node) for other in first.values() if other is not node):
                raise changed_constant(node)
            with graph.inserting_after(node):
                copied = graph.call_method("clone", (node,))
            copied.meta = dict(node.meta)
            for user in node.users.keys() - {copied}:
                user.replace_input_with(node, copied)


def _storage(node: Node) -> int:
    return getattr(owning_module(node), str(node.target)).untyped_storage().data_ptr()  # type: ignore[no-any-return]


def written_apart(node: Node) -> Node | None:
    """A later node that overwrites memory which this value shares with an earlier one, and which someone still reads.

    If this node's value became a copy, from then on one side would miss what is written to the other. None
    if there is no such node.
    """
    last = next(reversed(node.graph.nodes))
    group = sharing_memory(node, last, overwrites_input)
    behind = _derived(node)
    apart = group - behind
    if not apart:
        return None
    for side, other in ((apart, behind), (behind, apart)):
        for writer in sorted({user for member in side for user in member.users if node < user}):
            if writer in apart | behind and overwrites_input(writer) and _is_read(other, writer):
                return writer
    return None


def is_overwritten(node: Node) -> bool:
    """Whether something later writes to this value, or to what may be a view of it."""
    return any(
        overwrites_input(user) and user.all_input_nodes[:1] == [member]
        for member in _derived(node)
        for user in member.users
    )


def _derived(node: Node) -> set[Node]:
    """The node and whatever may be a view of it, made from it."""
    derived, frontier = {node}, [node]
    while frontier:
        member = frontier.pop()
        new = [
            user for user in member.users if user not in derived and member in aliased_inputs(user, overwrites_input)
        ]
        derived.update(new)
        frontier.extend(new)
    return derived


def _is_read(values: set[Node], writer: Node) -> bool:
    """Whether someone reads one of these values after `writer` wrote, in the graph or outside of it."""
    outside = any(value.op == "get_attr" for value in values)
    return outside or any(writer < user and user not in values for value in values for user in value.users)
