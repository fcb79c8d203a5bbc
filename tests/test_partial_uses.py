"""Code that cannot be seen may do anything with its children: whatever it does, its results stay the model's."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import module
from test_partial import X, body, like
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore::fitact_fx.UnprotectedWarning")

# Each is what forward returns for positive inputs; for the others it returns x.
USES = """
self.body[1](self.body[0](x))
self.body[2:](self.body[:2](x))
[layer(x) for layer in self.body][-1]
self.body(x) * len(self.body)
self.body(x) if isinstance(self.body, nn.Sequential) else -x
self.body(x) if type(self.head) is nn.Linear else -x
self.body(x) + self.head.weight[:2]
self.twice.double_it(x)
self.twice.inner[1](x)
self.twice.body_of()(x)
applied(self.body, x)
self.alias().body[0](x)
getattr(self, "body")[0](x)
next(self.children())[1](x)
self._modules["body"][1](x)
self.get_submodule("body.1")(x)
self.body(x) if self.body.training else -x
self.head(x) * self.head.out_features
self.body(x) + next(self.body.parameters()).mean()
nn.Sequential.forward(self.body, x)
self.body.forward(x)
F.linear(x, self.head.weight, self.head.bias).relu()
self.body(x) * (2 if "Sequential" in repr(self.body) else 1)
(lambda act: act(x) * act.slope)(self.twice)
""".strip().splitlines()
USER = """
import torch
import torch.nn.functional as F
from torch import Tensor, nn

def applied(layer, x):
    return layer[1](layer[0](x))

def body():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.GELU())

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.slope = body(), 3.0

    def forward(self, x):
        return self.inner(x)

    def double_it(self, x):
        return self.inner(x) * 2

    def body_of(self):
        return self.inner[0]

class User(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.twice = body(), nn.Linear(4, 4), Twice()

    def alias(self):
        return self

    def forward(self, x):
        if x.sum() > 0:
            return USE
        return x + self.body(x) + self.twice(x) + self.head(x)
"""


class TestWhatUnseenCodeDoesWithItsChildren:
    @pytest.mark.parametrize("use", USES)
    @pytest.mark.parametrize("where", ["a file", "no file"])
    def test_more_than_calling_them_still_gives_the_models_values(self, use: str, where: str, tmp_path: Path) -> None:
        file, space = tmp_path / "user.py", {"__name__": "user"}
        source = USER.replace("USE", use)
        if where == "a file":
            file.write_text(source)
            loader = importlib.util.spec_from_file_location("user", file)
            assert loader is not None
            assert loader.loader is not None
            made = importlib.util.module_from_spec(loader)
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(sys.modules, "user", made)
                loader.loader.exec_module(made)
                like(made.User(), X.abs())
        else:
            exec(compile(source, "<cell>", "exec"), space)
            like(space["User"](), X.abs())  # type: ignore[operator]

    def test_a_forward_given_to_the_class_later_is_looked_at_too(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            return self.body[0](x) if x.sum() > 0 else x

        like(module(forward, body=body()), X)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale = body(), 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.scale


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = body(), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.body(x)
        return self.last * 2


class Choosy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = body()

    def forward(self, x: Any, factor: Any) -> Tensor:
        x = x[0] if isinstance(x, list) else x
        return self.body(x) if factor is None else self.body(x) * factor


def sets(self: nn.Module, x: Tensor) -> Tensor:
    self.child.scale = 3.0 if x.sum() > 0 else 1.0
    return self.child(x)


def reads(self: nn.Module, x: Tensor) -> Tensor:
    return self.child(x) + self.child.last if x.sum() > 0 else x


def sometimes_none(self: nn.Module, x: Tensor) -> Tensor:
    return self.child(x, None) if x.sum() > 0 else self.child(x, x)


def sometimes_a_list(self: nn.Module, x: Tensor) -> Tensor:
    return self.child([x], x) if x.sum() > 0 else self.child(x, x)


def sometimes_a_number(self: nn.Module, x: Tensor) -> Tensor:
    return self.child(x, 2) if x.sum() > 0 else self.child(x, factor=x)


@pytest.mark.parametrize(
    ("forward", "child"),
    [
        (sets, Scaled),
        (reads, Remembering),
        (sometimes_none, Choosy),
        (sometimes_a_list, Choosy),
        (sometimes_a_number, Choosy),
    ],
)
def test_what_a_child_keeps_or_takes_may_change_from_call_to_call(
    forward: Callable[..., Tensor], child: Callable[[], nn.Module]
) -> None:
    like(module(forward, child=child()), X)
