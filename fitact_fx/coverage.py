"""Whether a fault can get past the bounds: every call of a graph is protected, or listed with the reason it is not.

A fault may arise in any value that the model computes. It is stopped by a bound, directly behind that value or
further on; where no bound stands in its way, the call is *open*, and a bound in one of the other places
(`find_sites` has them) can close it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from fitact_fx import refusals
from fitact_fx.bounded import bounded_sites
from fitact_fx.call_table import table
from fitact_fx.calls import BOUNDED, CONTAINED, OPEN, STATUSES, Call, calls_of
from fitact_fx.errors import TracingError
from fitact_fx.hardening import bound_sites
from fitact_fx.naming import activation_names
from fitact_fx.ownership import evaluating_copy, owned_copy
from fitact_fx.places import ACTIVATIONS
from fitact_fx.schemes.ranger import Ranger
from fitact_fx.sites import SiteRule, find_sites
from fitact_fx.traced import TracedModule
from fitact_fx.tracing import trace


@dataclass(frozen=True)
class Coverage:
    """What the bounds of a model protect.

    `calls`: every value that the model computes, in call order, and what becomes of a fault in it. `unseen`: path of
    a module whose code could not be seen -> why. `missing`: names of activations that torch.export sees in the same
    model and this graph does not have as a site, inside a call that stays whole; None where that was not checked,
    and `unchecked` says why.
    """

    frontend: str
    calls: tuple[Call, ...]
    unseen: Mapping[str, str]
    missing: tuple[str, ...] | None
    unchecked: str = ""

    @property
    def open(self) -> tuple[Call, ...]:
        """The calls from which a fault has a way to the output that meets no bound."""
        return self._that_are(OPEN)

    @property
    def bounded(self) -> tuple[Call, ...]:
        """The calls with a bound directly behind them."""
        return self._that_are(BOUNDED)

    @property
    def protected(self) -> tuple[Call, ...]:
        """The calls from which no fault comes to the output but through a bound."""
        return self._that_are(BOUNDED, CONTAINED)

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be open: no call, no code of the model itself, no activation that is missing."""
        return not self.open and "" not in self.unseen and not self.missing

    @property
    def counts(self) -> dict[str, int]:
        """How many calls there are of each status."""
        return {status: len(self._that_are(status)) for status in STATUSES}

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        total = {"calls": len(self.calls), **self.counts}
        return {**asdict(self), "unseen": dict(self.unseen), "complete": self.complete, "total": total}

    def table(self, limit: int | None = None) -> str:
        """The open calls, alike ones as one line, at most `limit` lines."""
        return table(self.open, limit)

    def _that_are(self, *statuses: str) -> tuple[Call, ...]:
        return tuple(call for call in self.calls if call.status in statuses)


def coverage(
    model: nn.Module, example_inputs: tuple[Any, ...] | Tensor | None = None, *, sites: SiteRule = ACTIVATIONS
) -> Coverage:
    """Every call of `model` in evaluation mode that could carry a fault onward, protected or with the reason it is not.

    Of a hardened model, its own bounds count, set or not. Any other is looked at as if it were hardened with these
    `sites` (see `find_sites`), and is not changed; `example_inputs` are those of `trace`. With them, the activations
    are checked against those that torch.export sees in the same model.

    What counts as a way out is what the model returns, and not what it writes into its arguments. A fault in a
    bound itself, or in a value that only shapes are taken of, is not looked at.
    Raises TracingError for a model that has no graph, RecipeError for unknown names.
    """
    if isinstance(model, TracedModule):
        own = None
        graph_module = model if bounded_sites(model) else _protected(owned_copy(model), sites)  # type: ignore[arg-type]
    else:
        refusals.refuse_other_things(model)
        own = evaluating_copy(model)
        graph_module = _protected(trace(own, example_inputs), sites)
    missing, unchecked = _missing(own, graph_module, example_inputs)
    return Coverage(graph_module.frontend, calls_of(graph_module), dict(graph_module.unseen), missing, unchecked)


def _protected(graph_module: TracedModule, sites: SiteRule) -> TracedModule:
    """The graph with a bound at each of these sites, if it has any."""
    found = find_sites(graph_module, sites)
    return bound_sites(graph_module, Ranger(follow=False).place(found, graph_module)) if found else graph_module


def _missing(
    model: nn.Module | None, graph_module: TracedModule, inputs: tuple[Any, ...] | Tensor | None
) -> tuple[tuple[str, ...] | None, str]:
    """The activations that only torch.export sees, and why it does not say, if so."""
    if graph_module.frontend == "export":
        return (), ""
    if model is None:
        return None, "this is a graph already: give the original model, and example inputs"
    if inputs is None:
        return None, "torch.export runs the model: give example inputs"
    try:
        exported = trace(model, inputs, frontend="export")
    except TracingError as error:
        return None, " ".join(str(error).split("\n  ")[:2])
    ours = frozenset(activation_names(graph_module).values())
    return tuple(name for name in activation_names(exported).values() if name not in ours), ""
