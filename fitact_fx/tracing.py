"""From a model to a graph that does what the model does, or the reason why there is none.

Front ends are tried from the one that sees most to the one that always finds something:

- "symbolic": `forward` runs once with stand-ins; the graph calls the model's own modules and works in both modes.
- "export": `torch.export` runs it on example inputs; the graph is of ATen operators, for evaluation mode.
- "partial": modules that cannot be traced run as they are, and their traceable children become graphs.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fitact_fx import refusals
from fitact_fx.errors import ExampleError, RecipeError, TracingError, known
from fitact_fx.frontends.comparing import difference
from fitact_fx.frontends.exported import exported
from fitact_fx.frontends.inputs import bound_arguments
from fitact_fx.frontends.partial import partial
from fitact_fx.frontends.symbolic import symbolic
from fitact_fx.ownership import owned_copy
from fitact_fx.traced import TracedModule

FRONTENDS = ("symbolic", "export", "partial")


def trace(
    model: nn.Module, example_inputs: tuple[Any, ...] | Tensor | None = None, *, frontend: str | None = None
) -> TracedModule:
    """The model as a graph, with the user's source line on every node; `.frontend` says how it was made.

    The result owns its modules and buffers and shares the Parameters with `model`, under the same
    names; it is in the same training mode, and takes the same arguments. An argument whose default
    is None, a flag, a number or a string is fixed to that default; another value raises an error.
    Values are the model's; a `torch.no_grad` region in forward is not kept, so gradients also flow there.

    `example_inputs`: a tuple of positional inputs (or one tensor), in which arguments may be left out at the end.
    With them an argument that is None, a flag, a number or a string is fixed to what it is there, the graph is
    compared with the model on them, and a model that cannot be traced symbolically is exported: then the sizes
    that the model does not let vary are fixed as well. `frontend` forces "symbolic", "export" (which needs
    `example_inputs`) or "partial" (whose `.unseen` says what could not be traced, and why).

    Raises TracingError, with the module and the user's line, for what no graph can express.
    """
    if frontend is not None and frontend not in FRONTENDS:
        raise RecipeError(known("front end", frontend, FRONTENDS))
    refusals.refuse_other_things(model)
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if inputs is not None and not isinstance(inputs, tuple):
        raise TracingError(f"example_inputs is a {type(inputs).__name__};\n  give a tuple of positional inputs")
    if frontend == "export" and inputs is None:
        raise TracingError(
            'the front end "export" runs the model;\n  give example_inputs, a tuple of positional inputs'
        )
    given = {} if inputs is None else bound_arguments(model, inputs).arguments
    ways: dict[str, Callable[[nn.Module], TracedModule]] = {
        "symbolic": lambda root: _like_the_model(symbolic(root, given), model, inputs),
        "export": lambda root: exported(root, inputs or ()),
        "partial": lambda root: partial(root, given, inputs),
    }
    if frontend is not None:
        return ways[frontend](owned_copy(model))
    if isinstance(model, TracedModule) and model.frontend != "symbolic":
        return owned_copy(model)  # type: ignore[return-value]  # its operators are not to be traced again
    reasons: dict[str, TracingError] = {}
    for name in FRONTENDS:
        if name == "export" and inputs is None:
            continue
        try:
            return ways[name](owned_copy(model))
        except ExampleError:
            raise
        except TracingError as error:
            reasons[name] = error
    raise _no_way(reasons) from reasons["symbolic"]


def _like_the_model(traced: TracedModule, model: nn.Module, inputs: tuple[Any, ...] | None) -> TracedModule:
    """The graph, if it gives what the model gives on its example inputs: code may ask what no stand-in answers."""
    told = None if inputs is None else difference(owned_copy(model), owned_copy(traced), inputs)
    if told:
        raise TracingError(
            f"the traced graph does not give the model's own results on the example inputs: {told};\n"
            "  decide on shapes and options in __init__ and not on arguments in forward"
        )
    return traced


def _no_way(reasons: dict[str, TracingError]) -> TracingError:
    """The reason of the symbolic front end, which names the user's line, and what the others add to it."""
    first = reasons["symbolic"]
    if "export" not in reasons:
        hint = "or give example_inputs: torch.export follows code that depends on them"
        return TracingError(f"{first},\n  {hint}", first.module)
    told = [f"{first}"]
    for name, what in (("export", "exported"), ("partial", "traced in part")):
        told.append(f"{what}: {reasons[name]}".replace("\n", "\n  "))
    return TracingError("\n  ".join(told), first.module)
