"""Put a bound behind each chosen site.

y = relu(x)          y = relu(x)
z = conv(y)    ->    y_bound = layer1.0.relu_bound(y)
                     z = conv(y_bound)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from fitact_fx.aliasing import written_apart
from fitact_fx.bounded import Bounded, Notice
from fitact_fx.errors import SiteError, site_message
from fitact_fx.followers import boundable
from fitact_fx.sites import Site, find_sites
from fitact_fx.source import source_line
from fitact_fx.spec import Spec
from fitact_fx.spellings import kind_of
from fitact_fx.traced import add_beside


@dataclass(frozen=True)
class Bound:
    """Bounds the sites named in `specs`; their bounds are not set yet.

    Returns the names of the sites. Raises SiteError for a name that is no site, for an activation that
    still overwrites its input, and when there is nothing to bound: silence would look like safety.
    """

    specs: Mapping[str, Spec]

    def __call__(self, graph_module: GraphModule) -> tuple[str, ...]:
        sites = boundable(graph_module)
        chosen = [name for name in sites if name in self.specs]
        missing = sorted(set(self.specs) - set(sites))
        if missing or not chosen:
            what = f"no site is called {missing[0]}" if missing else "no site was chosen to be bounded"
            raise SiteError(
                f"{what};\n  find_sites lists them: {', '.join(_some(graph_module)) or 'this graph has none'}"
            )
        like, notice = _like(graph_module), Notice()
        least = _least_values(sites, self.specs)
        for name in chosen:
            _refuse_inplace(sites[name])
            _refuse_written_apart(sites[name])
            _insert(graph_module, sites[name], _bounded(sites[name], self.specs[name], least[name], like, notice))
        return tuple(chosen)


def _some(graph_module: GraphModule) -> list[str]:
    return [site.name for site in find_sites(graph_module)]


def _refuse_inplace(site: Site) -> None:
    if site.inplace:
        problem = "it overwrites its input, which later readers may see unbounded"
        raise SiteError(site_message(site.name, site.source, problem, "run passes.functionalising.Functionalise first"))


def _refuse_written_apart(site: Site) -> None:
    """A bound gives a new tensor, which a later write to the memory of the old one would not reach."""
    writer = None if kind_of(site.node) is not None else written_apart(site.node)
    if writer is not None:
        problem = f"it shares memory with another value, and {source_line(writer)} overwrites that later"
        raise SiteError(
            site_message(site.name, site.source, problem, "leave it out: sites=lambda site: site.name != ...")
        )


def _insert(graph_module: GraphModule, site: Site, bounded: Bounded) -> None:
    target = add_beside(graph_module, site.node, f"{site.name}_bound", bounded)
    with site.node.graph.inserting_after(site.node):
        bound = site.node.graph.call_module(target, (site.node,))
    bound.meta = dict(site.node.meta)
    site.node.replace_all_uses_with(bound, delete_user_cb=lambda user: user is not bound)


def _bounded(site: Site, spec: Spec, minimum: float, like: Tensor, notice: Notice) -> Bounded:
    return Bounded(site.name, site.kind, site.source, spec, minimum, like, notice)


def _least_values(sites: Mapping[str, Site], specs: Mapping[str, Spec]) -> dict[str, float]:
    """Site name -> the least value it gives on clean data; what carries the bounds of others has the least of theirs.

    SiteError for a source that is not bounded itself, or not before it.
    """
    least: dict[str, float] = {}
    for name, site in sites.items():
        if name not in specs:
            continue
        carries = specs[name].carries
        missing = [source for source in carries if source not in least]
        if missing:
            problem = f"it carries the bounds of {missing[0]}, which has none before it"
            raise SiteError(site_message(name, site.source, problem, "give a spec for that site too"))
        zero = [0.0] if specs[name].includes_zero else []
        least[name] = min([least[source] for source in carries] + zero) if carries else site.minimum
    return least


def _like(graph_module: GraphModule) -> Tensor:
    """A tensor of the type and on the device that the bounds should have."""
    tensors = (*graph_module.parameters(), *graph_module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
