"""From a hardened model to compiled code for evaluation."""

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx import GraphModule

from fitact_fx.ambience import random_states_kept
from fitact_fx.bounded import Bounded, bounded_sites
from fitact_fx.errors import SiteError
from fitact_fx.fast_path import FastPath
from fitact_fx.guarded import limits_of
from fitact_fx.ownership import buffers_kept, evaluating_copy
from fitact_fx.passes import apply
from fitact_fx.passes.lowering import Lower, refuse_unset
from fitact_fx.traced import TracedModule


def lower(hard: GraphModule, example_inputs: tuple[Any, ...] | Tensor, backend: str = "inductor") -> Any:
    """The hardened model for evaluation, compiled as one graph of plain operators (and the code that was not seen).

    Compiled here and now, by one run on `example_inputs` (a tensor or a tuple of positional inputs), for the autocast
    that is on here; Parameters are shared with `hard`, buffers and bounds are copied. `backend` is any of
    torch.compile's. A guard on a CPU makes two graphs, with and without checks; the second runs where all parameters
    are within their limits, which is asked at each call. Inputs of another shape or type than the example's are
    compiled for when a graph first gets them: for the one with checks, that may be at the first fault.
    Raises SiteError if a bound is not set, TracingError if `hard` cannot be put in evaluation mode.
    """
    if not bounded_sites(hard) and not limits_of(hard):
        raise SiteError(f"this {type(hard).__name__} is not a hardened model;\n  lower what fitact_fx.harden returned")
    if isinstance(example_inputs, Tensor):
        example_inputs = (example_inputs,)
    own = evaluating_copy(hard)
    for bounded in bounded_sites(own).values():
        refuse_unset(bounded)
    unseen = isinstance(hard, TracedModule) and bool(hard.unseen)

    # The model may overwrite what it is called with, and these are the user's.
    def run(called: Any) -> None:
        cloned: Any = pytree.tree_map(lambda each: each.clone() if isinstance(each, Tensor) else each, example_inputs)
        with torch.no_grad():
            called(*cloned)

    with random_states_kept(), buffers_kept(own):
        types, ranks = _values_seen(own, run)
        apply(own, Lower(types, ranks))  # type: ignore[arg-type]
        # Code that could not be seen may break the compiled graph, and holds parts that are graphs of their own.
        plain: Any = own if unseen else GraphModule(own, own.graph, f"Lowered{type(hard).__name__}")  # type: ignore[arg-type]
        plain.meta["lowered"] = True  # its bounds are constants of comparisons now
        compiled: Any = torch.compile(plain, backend=backend, fullgraph=not unseen)
        run(compiled)
        # On a GPU, to ask for a parameter's extremes is to wait for all that was begun before.
        if limits_of(hard) and not unseen and all(each.is_cpu for each in plain.parameters()):
            compiled.forward = FastPath(plain, compiled.forward, backend)
            if compiled.forward.is_open():
                run(compiled)
    return compiled


def _values_seen(own: nn.Module, run: Any) -> tuple[dict[str, torch.dtype], dict[str, int]]:
    """Site name -> the type and the rank of its values in a run, under the autocast of the caller."""
    types: dict[str, torch.dtype] = {}
    ranks: dict[str, int] = {}

    def note(bounded: Bounded, _: object, output: Tensor) -> None:
        types[bounded.site], ranks[bounded.site] = output.dtype, output.ndim

    handles = [bounded.register_forward_hook(note) for bounded in bounded_sites(own).values()]
    run(own)
    for handle in handles:
        handle.remove()
    return types, ranks
