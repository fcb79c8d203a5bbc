"""The code of a root module that no graph can hold, run as it is over the children of the traced model."""

from inspect import Parameter as Argument
from typing import Any

from torch import nn


class UnseenCode(nn.Module):
    """Runs a root module's own `forward`, which could not be seen, over the children of the traced model.

    It holds no Parameter, buffer or child under names of its own: those are the traced model's, so that
    every name stays what it is in the user's model. It is called with one value per argument of that forward.
    """

    def __init__(self, root: nn.Module, arguments: tuple[tuple[str, Any], ...]) -> None:
        super().__init__()
        self._root = (root,)  # in a tuple, so that its tensors are registered once
        self.arguments = arguments
        self._is_impure = True  # nobody knows what its code does besides returning a value

    @property
    def root(self) -> nn.Module:
        """The module whose code runs."""
        return self._root[0]

    def forward(self, *values: Any) -> Any:
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for (name, kind), value in zip(self.arguments, values, strict=True):
            if kind is Argument.VAR_POSITIONAL:
                positional.extend(value)
            elif kind is Argument.VAR_KEYWORD:
                named.update(value)
            elif kind is Argument.KEYWORD_ONLY:
                named[name] = value
            else:
                positional.append(value)
        self.root.training = self.training
        return self.root(*positional, **named)

    def join(self, traced: nn.Module) -> None:
        """Let the code read the tensors and children of `traced` as its own."""
        own = vars(self.root)
        own["_parameters"], own["_buffers"] = traced._parameters, traced._buffers
        for name in own["_modules"]:
            own["_modules"][name] = traced._modules[name]

    def extra_repr(self) -> str:
        return type(self.root).__name__
