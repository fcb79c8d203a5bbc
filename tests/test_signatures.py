"""A hardened model is an nn.Module with the original's call signature, whichever front end made its graph."""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from small_models import INFINITE, module
from torch import Tensor, nn

from fitact_fx import harden, set_bounds, trace
from fitact_fx.errors import FitactError, TracingError, UnprotectedWarning
from fitact_fx.traced import TracedModule

X = torch.linspace(-3, 3, 8).reshape(2, 4)
Y = X.flip(0) * 0.5
FRONTENDS = ("symbolic", "export", "partial", "unseen")


def hardened(model: nn.Module, inputs: tuple[Any, ...], frontend: str) -> TracedModule:
    """By that front end; "unseen" stands for a root whose code cannot be seen, with a child that can."""
    model.eval()
    if frontend == "unseen":
        model.add_module("child", nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
        body = type(model).forward
        type(model).forward = unseeable(body)  # type: ignore[method-assign]
        frontend = "partial"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnprotectedWarning)
        hard = harden(model, example_inputs=inputs if frontend == "export" else None, frontend=frontend)
    set_bounds(hard, INFINITE)
    return hard


def unseeable(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same forward behind a branch on values."""
    import functools

    @functools.wraps(forward)
    def branching(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        assert self.child(next(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))).sum() >= 0
        return forward(self, *args, **kwargs)

    return branching


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(equal, one, other))
    return equal(vars(one), vars(other)) if hasattr(one, "__dataclass_fields__") else bool(one == other)


def agree(model: nn.Module, hard: nn.Module, *args: Any, **kwargs: Any) -> None:
    with torch.no_grad():
        assert equal(model(*args, **kwargs), hard(*args, **kwargs))


def plain(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.relu(x - y)


def with_defaults(
    self: nn.Module, x: Tensor, scale: float = 2.0, mask: Tensor | None = None, flip: bool = False
) -> Any:
    x = x if mask is None else x * mask
    return F.relu(-x if flip else x) * scale


def by_name_only(self: nn.Module, x: Tensor, *, y: Tensor, scale: float = 2.0) -> Tensor:
    return F.relu(x - y) * scale


def variable(self: nn.Module, x: Tensor, *more: Tensor) -> Tensor:
    return F.relu(x) + (more[0] if more else 0)


def named(self: nn.Module, x: Tensor, **options: Tensor) -> Tensor:
    return F.relu(x) + options.get("y", 0)


def by_position_only(self: nn.Module, x: Tensor, y: Tensor, /) -> Tensor:
    return F.relu(x - y)


@pytest.mark.parametrize("frontend", FRONTENDS)
class TestCalls:
    def test_by_position_and_by_name(self, frontend: str) -> None:
        model = module(plain)
        hard = hardened(model, (X, Y), frontend)
        assert isinstance(hard, nn.Module)
        for args, kwargs in (((X, Y), {}), ((X,), {"y": Y}), ((), {"y": Y, "x": X}), ((), {"x": X, "y": Y})):
            agree(model, hard, *args, **kwargs)

    def test_by_position_only(self, frontend: str) -> None:
        model = module(by_position_only)
        agree(model, hardened(model, (X, Y), frontend), X, Y)

    def test_a_missing_or_unknown_argument_is_a_type_error_as_ever(self, frontend: str) -> None:
        hard = hardened(module(plain), (X, Y), frontend)
        for args, kwargs in (((X,), {}), ((X, Y, X), {}), ((X, Y), {"z": X}), ((X, Y), {"x": X})):
            with pytest.raises(TypeError):
                hard(*args, **kwargs)

    def test_defaults_may_be_left_out_or_given(self, frontend: str) -> None:
        model = module(with_defaults)
        hard = hardened(model, (X,), frontend)
        for args, kwargs in (((X,), {}), ((X, 2.0), {}), ((X, 2.0, None, False), {}), ((X,), {"flip": False})):
            agree(model, hard, *args, **kwargs)

    @pytest.mark.parametrize(
        ("name", "value"), [("mask", torch.tensor([1.0, 0, 1, 0])), ("scale", 3.0), ("flip", True)]
    )
    def test_another_value_than_the_default_is_right_or_refused_by_name(
        self, frontend: str, name: str, value: Any
    ) -> None:
        model = module(with_defaults)
        hard = hardened(model, (X,), frontend)
        if frontend == "unseen":  # the model's own code decides
            agree(model, hard, X, **{name: value})
            return
        with pytest.raises(TracingError, match=f"argument '{name}' was fixed to its default"):
            hard(X, **{name: value})

    def test_by_name_only(self, frontend: str) -> None:
        model = module(by_name_only)
        if frontend == "export":  # example_inputs are positional
            with pytest.raises(TracingError, match="missing a required"):
                hardened(model, (X,), frontend)
            return
        hard = hardened(model, (X,), frontend)
        agree(model, hard, X, y=Y)
        agree(model, hard, y=Y, x=X, scale=2.0)
        with pytest.raises(TypeError):
            hard(X)

    def test_any_number_of_positions(self, frontend: str) -> None:
        model = module(variable)
        if frontend in ("symbolic", "partial"):
            model = module(lambda self, x, *more: F.relu(x) + more[0])
        hard = hardened(model, (X, Y), frontend)
        agree(model, hard, X, Y)
        if frontend == "export":
            for other in ((X,), (X, Y, Y)):
                with pytest.raises(TracingError, match="more"):
                    hard(*other)
        if frontend == "unseen":
            agree(model, hard, X)

    def test_any_names(self, frontend: str) -> None:
        model = module(named)
        if frontend in ("symbolic", "partial"):
            model = module(lambda self, x, **options: F.relu(x) + options["y"])
        hard = hardened(model, (X,), frontend)
        if frontend == "export":  # the example has none
            agree(model, hard, X)
            with pytest.raises(TracingError, match="options"):
                hard(X, y=Y)
            return
        agree(model, hard, X, y=Y)


class Pair(NamedTuple):
    first: Tensor
    second: Any


@dataclass
class Output:
    logits: Tensor
    aux: Any = None


@dataclass
class Dictionary(OrderedDict):  # type: ignore[type-arg]
    """As Hugging Face's transformers return them."""

    logits: Any = None
    hidden: Any = None

    def __post_init__(self) -> None:
        for name in ("logits", "hidden"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a tuple": lambda x, y: (y, x, None),
    "a list": lambda x, y: [y, [y + 1, 3]],
    "a dict": lambda x, y: {"out": y, "aux": {"deep": (y * 2, "text")}},
    "a named tuple": lambda x, y: Pair(y, [None, y]),
    "a dataclass": lambda x, y: Output(y, (y * 2, None)),
    "dataclasses inside": lambda x, y: {"a": Output(y), "b": [Output(y * 2, Pair(y, 1.5))]},
    "sizes": lambda x, y: (y, y.shape[0], y.shape[1] * 2),
    "the same twice": lambda x, y: (y, y),
    "nothing else": lambda x, y: (y, (), {}, []),
}


@pytest.mark.parametrize("frontend", FRONTENDS)
class TestOutputs:
    @pytest.mark.parametrize("make", OUTPUTS.values(), ids=list(OUTPUTS))
    def test_they_keep_their_form(self, frontend: str, make: Callable[[Tensor, Tensor], Any]) -> None:
        model = module(lambda self, x: make(x, F.relu(x)))
        hard = hardened(model, (X,), frontend)
        agree(model, hard, X)
        agree(model, hard, X[:1])

    def test_a_dataclass_that_is_a_dict(self, frontend: str) -> None:
        def forward(self: nn.Module, x: Tensor) -> Dictionary:
            return Dictionary(logits=F.relu(x))

        model = module(forward)
        got = hardened(model, (X,), frontend)(X)
        assert type(got) is Dictionary
        assert list(got) == ["logits"]
        assert torch.equal(got["logits"], F.relu(X))
        assert torch.equal(got.logits, F.relu(X))


class Inputs(NamedTuple):
    x: Tensor
    more: Any


@dataclass
class Batch:
    x: Tensor
    mask: Any = None


NESTED: list[tuple[Callable[[Any], Tensor], Any]] = [
    (lambda given: F.relu(given["x"] - given["y"]), {"x": X, "y": Y}),
    (lambda given: F.relu(given[0] - given[1]), (X, Y)),
    (lambda given: F.relu(given[0] - given[1][0]), [X, [Y]]),
    (lambda given: F.relu(given.x - given.more[1]), Inputs(X, (None, Y))),
    (lambda given: F.relu(given.x), Batch(X)),
    (lambda given: F.relu(given.x - given.mask), Batch(X, Y)),
]


class TestNestedInputs:
    @pytest.mark.parametrize("frontend", ["symbolic", "export", "unseen"])
    @pytest.mark.parametrize(("read", "given"), NESTED)
    def test_they_are_taken_apart(self, frontend: str, read: Callable[[Any], Tensor], given: Any) -> None:
        if frontend == "unseen":
            model = module(lambda self, x, given: self.body(x) if x.sum() > 99 else read(given), body=nn.ReLU())
            agree(model, hardened(model, (), "partial"), X, given)
            return
        model = module(lambda self, given: read(given)).eval()
        hard = hardened(model, (given,), frontend)
        agree(model, hard, given)
        agree(model, hard, given=given)

    def test_none_in_the_examples_stays_none(self) -> None:
        def forward(self: nn.Module, x: Tensor, mask: Tensor | None, y: Tensor) -> Tensor:
            return F.relu(x - y) if mask is None else F.relu(x) * mask

        model = module(forward)
        hard = hardened(model, (X, None, Y), "export")
        agree(model, hard, X, None, Y)
        with pytest.raises(TracingError, match="argument 'mask'"):
            hard(X, Y, Y)
        with_mask = hardened(module(forward), (X, Y, Y), "export")
        agree(model, with_mask, X, X, Y)
        with pytest.raises(FitactError):
            with_mask(X, None, Y)

    def test_what_is_no_tensor_nor_constant_is_named(self) -> None:
        model = module(lambda self, x, other: F.relu(x)).eval()
        with pytest.raises(TracingError, match="argument 'other' of the example inputs holds a object"):
            trace(model, (X, object()), frontend="export")
