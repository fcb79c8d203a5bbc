"""Sites: the calls whose values are bounded. An activation is one by default; other places are for the user to choose.

A site is one call in a graph, in any spelling: a module called twice is two sites.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node

from fitact_fx.bounded import Bounded
from fitact_fx.errors import RecipeError, known
from fitact_fx.injected import Injected
from fitact_fx.kinds import FREE, Kind
from fitact_fx.naming import value_names
from fitact_fx.nodes import called_module, operator_name, overwrites_input
from fitact_fx.places import ACTIVATIONS, NAMES, places
from fitact_fx.source import owner_path, source_line
from fitact_fx.spellings import kind_of, least_value


@dataclass(frozen=True)
class Site:
    """One call whose value can be bounded.

    `name` is how users write it: `layer1.0.relu`, and `layer1.0.relu_1` for the second call; `kind` the
    kind of activation, or of another place the operator's name (`linear`, `add`); `module_path` the module
    whose code makes the call, "" for the root; `source` the user's own line; `minimum` the least value it
    gives when nothing is faulty; `places` what it is in the graph, of "activations", "linear", "norm",
    "residual" and "logits".
    """

    name: str
    kind: str
    module_path: str
    source: str
    inplace: bool
    minimum: float
    places: frozenset[str]
    node: Node = field(repr=False, compare=False)


SiteRule = str | Iterable[str] | Callable[[Site], bool]
"""Which sites: a place, several of them, or a predicate that is asked for every site of every place."""


def find_sites(graph_module: GraphModule, sites: SiteRule = ACTIVATIONS) -> tuple[Site, ...]:
    """The sites of the graph that do not feed a bound yet, in call order; parts of it included.

    `sites`: "activations" (the default), "linear" (outputs of linear and convolution layers, matrix products
    and attention), "norm" (normalisation layers), "residual" (sums of two values that come from the input),
    "logits" (what the model returns), several of these, or a predicate `site -> bool` that is asked for
    every such site. RecipeError for another name.
    """
    chosen = _predicate(sites)
    return tuple(site for site in _all_sites(graph_module) if chosen(site))


def feeds_bound(node: Node) -> bool:
    """Whether a bound already stands behind this node, an injection node between them or not."""
    modules = {user: called_module(user) for user in node.users if user.op == "call_module"}
    return any(
        isinstance(module, Bounded) or (isinstance(module, Injected) and feeds_bound(user))
        for user, module in modules.items()
    )


def _predicate(sites: SiteRule) -> Callable[[Site], bool]:
    if callable(sites):
        return sites
    if not isinstance(sites, Iterable):
        raise RecipeError(f"sites is {sites!r};\n  give a place, several of them ({', '.join(NAMES)}), or a predicate")
    names = frozenset((sites,) if isinstance(sites, str) else sites)
    wrong = sorted(map(str, names - set(NAMES)))
    if wrong or not names:
        raise RecipeError(known("place", wrong[0], NAMES) if wrong else f"no place is named; give {', '.join(NAMES)}")
    return lambda site: bool(site.places & names)


def _all_sites(graph_module: GraphModule) -> tuple[Site, ...]:
    """Every site of every place that does not feed a bound yet, in call order."""
    where = places(graph_module)
    return tuple(
        _site(node, name, where[node])
        for node, name in value_names(graph_module).items()
        if node in where and not feeds_bound(node)
    )


def _site(node: Node, name: str, where: frozenset[str]) -> Site:
    kind: Kind | None = kind_of(node)
    word, minimum = (operator_name(node), FREE) if kind is None else (kind.name, least_value(node, kind))
    return Site(name, word, owner_path(node), source_line(node), overwrites_input(node), minimum, where, node)
