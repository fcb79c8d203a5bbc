"""Whether a module writes to the values that it runs on.

A write to a value that stands for a Parameter is lost, and limits of before a write take what it leaves for faults. So
what a module runs on is noted when its call begins and looked at when it ends; not where nobody can write.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks

from fitact_fx.parameter_limits import same_bits


@dataclass(frozen=True, eq=False)  # tensors are no truth values
class Seen:
    """A value that a module runs on, and what it was when the call began.

    `table` is the module's registry that holds it as `last`. `contents` is a copy, None if only the version is
    compared: that costs nothing, but a write to `data` does not show in it.
    """

    name: str
    table: dict[str, Any]
    last: str
    value: Tensor
    version: int | None
    contents: Tensor | None

    @classmethod
    def of(cls, name: str, place: tuple[dict[str, Any], str], value: Tensor, *, whole: bool) -> "Seen":
        """The value as it is now, with its contents if `whole`."""
        return cls(name, *place, value, _version(value), value.detach().clone() if whole else None)

    def was_written(self) -> bool:
        """Whether something else stands in its place, or it is not what it was."""
        if self.table.get(self.last) is not self.value or _version(self.value) != self.version:
            return True
        return self.contents is not None and not same_bits(self.value.detach(), self.contents)


def only_reads(module: nn.Module, is_ours: Callable[[object], bool]) -> bool:
    """Whether nothing can write in a call of this module: a layer of torch's, with no code or hook but ours in it."""
    own = type(module).__module__.startswith("torch.nn.modules.") and "forward" not in vars(module)
    # Hooks of all modules that come before a call come before ours, too.
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values(), *_global_forward_hooks.values())
    return own and not module._modules and all(map(is_ours, hooks))


def _version(value: Tensor) -> int | None:
    return None if value.is_inference() else value._version
