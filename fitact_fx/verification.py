"""The user's own check: does the hardened model give the model's clean outputs, and if not, where not?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from fitact_fx.ambience import random_states_kept, slow_path
from fitact_fx.bounded import Bounded, bounded_sites
from fitact_fx.errors import SiteError
from fitact_fx.guarded import limits_of
from fitact_fx.ownership import evaluating_copy


@dataclass(frozen=True)
class Verification:
    """What `verify` found: true when every output is bitwise equal.

    `first_site` is the first site in call order whose bound changed a value, None if none did;
    `changed` how many values each site changed; `largest_difference` the greatest absolute
    difference of the outputs (NaN against a number counts as infinite).
    """

    equal: bool
    first_site: str | None
    changed: dict[str, int]
    largest_difference: float

    def __bool__(self) -> bool:
        return self.equal

    def __str__(self) -> str:
        if self.equal:
            return "equal: the outputs are bitwise the model's"
        if self.first_site is None:
            return (
                f"different by up to {self.largest_difference:.3g}, and no bound changed a value: "
                "the traced graph itself differs from the model"
            )
        count = self.changed[self.first_site]
        where = f"first at {self.first_site}, where {count} values lie beyond the bounds"
        return f"different by up to {self.largest_difference:.3g}; {where}"


Inputs = tuple[Any, ...] | Mapping[str, Any] | Tensor


def verify(model: nn.Module, hard: nn.Module, inputs: Inputs) -> Verification:
    """Compare the clean outputs of `model` and `hard` on the same inputs, in evaluation mode.

    `inputs`: a tensor, a tuple of positional or a dict of keyword arguments. Both models run as copies with
    the same random numbers, so neither's modes, buffers nor the global random states change.
    """
    if not bounded_sites(hard) and not limits_of(hard):
        raise SiteError(
            f"this {type(hard).__name__} is not a hardened model;\n  pass what fitact_fx.harden or guard returned"
        )
    named = dict(inputs) if isinstance(inputs, Mapping) else {}
    args = () if named else inputs if isinstance(inputs, tuple) else (inputs,)
    counts: dict[str, int] = {}
    twin = evaluating_copy(hard)
    for bounded in bounded_sites(twin).values():
        bounded.register_forward_hook(_counter(counts))
        bounded.notice.given = True
    expected = _outputs(evaluating_copy(model), args, named)
    got = _outputs(twin, args, named)
    largest = max((_difference(a, b) for a, b in zip(expected, got, strict=False)), default=0.0)
    if len(expected) != len(got):
        largest = torch.inf
    first = next((name for name, count in counts.items() if count), None)
    return Verification(largest == 0.0, first, counts, largest)


def _counter(counts: dict[str, int]) -> Any:
    def count(module: Bounded, args: tuple[Tensor, ...], output: Tensor) -> None:
        changed = (args[0] != output) & ~(args[0].isnan() & output.isnan())
        counts[module.site] = counts.get(module.site, 0) + int(changed.sum())

    return count


def _outputs(model: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
    own: Any = pytree.tree_map(lambda each: each.clone() if isinstance(each, Tensor) else each, (args, named))
    with random_states_kept(), torch.no_grad(), slow_path():
        return pytree.tree_leaves(model(*own[0], **own[1]))


def _difference(expected: Any, got: Any) -> float:
    if not isinstance(expected, Tensor) or not isinstance(got, Tensor):
        return 0.0 if expected == got else torch.inf
    if expected.shape != got.shape:
        return torch.inf
    same = (expected == got) | (expected.isnan() & got.isnan())
    if bool(same.all()):
        return 0.0
    apart = (expected.double() - got.double()).abs()[~same]
    return float(apart.nan_to_num(nan=torch.inf).max())
