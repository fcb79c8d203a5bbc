"""What becomes of a fault in each value of a graph: it meets a bound, or it has a way out."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch.fx import Node

from fitact_fx.naming import value_names
from fitact_fx.nodes import operator_name
from fitact_fx.places import NAMES, places
from fitact_fx.sites import feeds_bound
from fitact_fx.source import source_line
from fitact_fx.traced import TracedModule, joined, nodes_in_call_order
from fitact_fx.ways import FEW, Ways, parts_around

BOUNDED, CONTAINED, OPEN = STATUSES = ("bounded", "contained", "open")
PASSES_ON = "passes on what it gets, and that is open"

# Operators whose result is values of their inputs, moved, joined, chosen or averaged: a fault in it came with them.
_PASSES_ON = frozenset(
    "view reshape flatten unflatten permute transpose t swapaxes swapdims movedim moveaxis squeeze unsqueeze expand "
    "repeat repeat_interleave tile cat concat stack chunk split unbind select slice narrow index index_select gather "
    "getitem getattr roll flip pad contiguous clone detach to type float half type_as view_as expand_as alias identity "
    "dropout dropout1d dropout2d dropout3d alphadropout featurealphadropout feature_dropout alpha_dropout "
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d maxpool1d maxpool2d maxpool3d avgpool1d "
    "avgpool2d avgpool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptiveavgpool1d "
    "adaptiveavgpool2d adaptiveavgpool3d adaptive_max_pool1d adaptive_max_pool2d adaptivemaxpool1d adaptivemaxpool2d "
    "mean amax amin max interpolate upsample pixel_shuffle pixelshuffle pixel_unshuffle pixelunshuffle "
    "zeropad2d lift_fresh_copy to_copy".split()
)
# What torch's transformer layers ask of a mask: a type, a size, a flag.
_NO_VALUES = frozenset("none_or_dtype get_seq_len detect_is_causal_mask".split())


@dataclass(frozen=True)
class Call:
    """One value of a graph, and what becomes of a fault in it.

    `status`: "bounded" if a bound stands directly behind it, "contained" if every way from it to what the model
    returns goes through a bound, "open" if one does not; `why` says past which bounds, or what to do. `name` is how
    users write it, `operator` what is called, `source` the user's own line.
    """

    name: str
    operator: str
    source: str
    status: str
    why: str


def calls_of(graph_module: TracedModule) -> tuple[Call, ...]:
    """Every value that the graph and its parts compute, in call order."""
    return tuple(_Calls(graph_module).described())


class _Calls:
    """One graph, and what is asked of it for each of its calls."""

    def __init__(self, graph_module: TracedModule) -> None:
        self.unseen = graph_module.unseen
        self.places = places(graph_module)
        self.paths = {node: path for path, node in nodes_in_call_order(graph_module)}
        self.ways = Ways.of(graph_module)
        self.names = value_names(graph_module)

    def described(self) -> Iterator[Call]:
        for node, name in self.names.items():
            if _computes(node):
                yield Call(name, operator_name(node), source_line(node), *self._status(node))

    def _status(self, node: Node) -> tuple[str, str]:
        if node in self.ways.open:
            return OPEN, self._why_open(node)
        if feeds_bound(node):
            return BOUNDED, "a bound stands behind it"
        if node not in self.ways.used:
            return CONTAINED, "its value is not used"
        names = self.ways.ahead[node]
        return CONTAINED, "behind " + _listed(names)

    def _why_open(self, node: Node) -> str:
        if feeds_bound(node):
            return "a bound stands behind it, and its memory is also read past that bound"
        end = self._end(node)
        if node in self.places:
            return f"no bound between here and {end}; {_remedy([self.places[node]])} to put one here"
        if next(parts_around(node), None) is not None or self._path(node) in self.unseen:
            return "its code could not be seen, and no bound stands behind it"
        if operator_name(node) in _PASSES_ON and any(each in self._open_values for each in node.all_input_nodes):
            return PASSES_ON
        ahead = self._places_ahead(node)
        if ahead is None:
            return f"no bound between here and {end}, and no call there is a place for one"
        at = _listed([self.names[each] for each in ahead][: FEW + 1])
        remedy = _remedy([self.places[each] for each in ahead])
        return f"no bound between here and {end}; {remedy} to put one behind it, at {at}"

    @cached_property
    def _open_values(self) -> frozenset[Node]:
        return frozenset(each for each in self.ways.open if each in self.names and _computes(each))

    def _path(self, node: Node) -> str | None:
        """The path of the module that this node calls."""
        return joined(self.paths[node], str(node.target)) if node.op == "call_module" else None

    def _end(self, node: Node) -> str:
        """What is at the end of the graph that this node is in."""
        path = self.paths[node]
        if not path:
            return "the output"
        around = [each for each in self.unseen if not each or f"{path}.".startswith(f"{each}.")]
        return f"the code of {max(around, key=len, default='') or 'the model itself'}, which could not be seen"

    def _places_ahead(self, node: Node) -> list[Node] | None:
        """The places that the open ways from this node come to first; None if one of them comes to none."""
        found: set[Node] = set()
        seen, frontier = {node}, [node]
        while frontier:
            for reader in self.ways.readers[frontier.pop()]:
                if reader.op == "output":
                    return None
                if reader in seen or reader not in self.ways.open:
                    continue
                seen.add(reader)
                if reader in self.places and reader in self.names:
                    found.add(reader)
                else:
                    frontier.append(reader)
        return [each for each in self.names if each in found]


def _computes(node: Node) -> bool:
    """Whether this node's value is computed by the graph, and one that a fault can be in."""
    return node.op.startswith("call_") and operator_name(node) not in _NO_VALUES


def _remedy(where: list[frozenset[str]]) -> str:
    """The words that, among `sites`, bound all of these places."""
    common = frozenset.intersection(*where)
    if common:
        return f"add {_quoted(common, ' or ')} to sites"
    return f"add {_quoted(frozenset(next(name for name in NAMES if name in each) for each in where), ' and ')} to sites"


def _quoted(names: frozenset[str], between: str) -> str:
    return between.join(f'"{name}"' for name in NAMES if name in names)


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:FEW]) + (" and others" if len(names) > FEW else "")
