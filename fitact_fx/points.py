"""Which values of a graph a user means by globs over their names (`naming`), to inject faults there."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch.fx import GraphModule, Node

from fitact_fx.errors import FaultError, close_to
from fitact_fx.naming import activation_names, value_names


def matching_points(graph_module: GraphModule, globs: Sequence[str]) -> dict[str, Node]:
    """The points that these globs mean, in call order.

    A glob means the activations that it matches, so that "layer1.*" is every activation of layer1; only one that
    matches none means other values: "layer1.0.conv1", "*.add", or the argument "x". FaultError, with names that
    are close, for one that matches nothing.
    """
    points = {name: node for node, name in value_names(graph_module).items()}
    sites = activation_names(graph_module).values()
    chosen: set[str] = set()
    if not globs:
        raise FaultError("`at` names no place to inject;\n  give globs over the names of activations, such as '*'")
    for glob in [globs] if isinstance(globs, str) else globs:
        matched = [name for name in sites if fnmatchcase(name, glob)]
        matched = matched or [name for name in points if fnmatchcase(name, glob)]
        if not matched:
            some = ", ".join((list(sites) or list(points))[:5])
            hint = close_to(glob, points) or f"; there are {some}, ..."
            raise FaultError(f"the pattern {glob!r} matches no value of the model{hint}")
        chosen.update(matched)
    return {name: node for name, node in points.items() if name in chosen}
