"""Places: what besides activations is bounded, and what each name selects."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import INFINITE, bitwise_equal, module, run
from torch import Tensor, nn

from fitact_fx import Site, find_sites, harden, set_bounds, trace
from fitact_fx.errors import RecipeError, SiteError
from fitact_fx.sites import SiteRule

X = torch.linspace(-3, 3, 8).reshape(2, 4)
IMAGES = torch.linspace(-2, 2, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)
PLACES = ("activations", "linear", "norm", "residual", "logits")


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        y = self.relu(y)
        return self.fc(y.mean((2, 3)))


class Block(nn.Module):
    """A transformer block by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.qkv, self.proj = (
            nn.LayerNorm(4),
            nn.LayerNorm(4),
            nn.Linear(4, 12),
            nn.Linear(4, 4),
        )
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        weights = (q @ k.transpose(-2, -1) / q.size(-1) ** 0.5 + 1).softmax(-1)
        x = x + self.proj(weights @ v) * self.scale
        return x + self.mlp(self.norm2(x) + self.scale)


CASES: list[tuple[Callable[[], nn.Module], Tensor, dict[str, list[str]]]] = [
    (
        Cnn,
        IMAGES,
        {
            "activations": ["relu", "relu_1"],
            "linear": ["conv1", "conv2", "fc"],
            "norm": ["bn1", "bn2"],
            "residual": ["add"],
            "logits": ["fc"],
        },
    ),
    (
        Block,
        torch.linspace(-2, 2, 24).reshape(2, 3, 4),
        {
            "activations": ["softmax", "mlp.1"],
            "linear": ["qkv", "matmul", "matmul_1", "proj", "mlp.0", "mlp.2"],
            "norm": ["norm1", "norm2"],
            "residual": ["add_1", "add_3"],
            "logits": ["add_3"],
        },
    ),
]


def names(model: nn.Module, sites: SiteRule, **options: Any) -> list[str]:
    return [site.name for site in find_sites(trace(model, **options), sites)]


class TestWhatEachSelects:
    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize(("make", "inputs", "expected"), CASES, ids=["cnn", "block"])
    @pytest.mark.parametrize("frontend", ["symbolic", "export"])
    def test_by_name(
        self,
        make: Callable[[], nn.Module],
        inputs: Tensor,
        expected: dict[str, list[str]],
        place: str,
        frontend: str,
    ) -> None:
        assert names(make().eval(), place, example_inputs=(inputs,), frontend=frontend) == expected[place]

    def test_several_are_in_call_order(self) -> None:
        assert names(Cnn(), ("norm", "linear")) == ["conv1", "bn1", "conv2", "bn2", "fc"]
        assert names(Cnn(), ["linear", "logits"]) == ["conv1", "conv2", "fc"]
        assert names(Cnn(), iter(PLACES)) == names(Cnn(), lambda site: True)

    def test_a_predicate_is_asked_for_every_site(self) -> None:
        asked: list[Site] = []

        def last(site: Site) -> bool:
            asked.append(site)
            return "logits" in site.places

        assert names(Cnn(), last) == ["fc"]
        assert [site.name for site in asked] == ["conv1", "bn1", "relu", "conv2", "bn2", "add", "relu_1", "fc"]
        assert {site.name: site.kind for site in asked}["conv1"] == "conv2d"
        assert asked[-1].places == {"linear", "logits"}

    def test_an_unknown_place_is_named_with_those_there_are(self) -> None:
        for wrong in ("conv", ("linear", "conv")):
            with pytest.raises(RecipeError, match="unknown place 'conv'; choose one of activations, linear, logits"):
                harden(Cnn(), sites=wrong)
        with pytest.raises(RecipeError, match="no place is named"):
            harden(Cnn(), sites=())

    @pytest.mark.parametrize("place", ["linear", "norm", "residual"])
    def test_where_there_is_none_it_says_so(self, place: str) -> None:
        with pytest.raises(SiteError, match=f"no site that is '{place}' was found"):
            harden(module(lambda self, x: F.relu(x)), sites=place)

    @pytest.mark.parametrize(
        "call",
        [
            lambda self, x: x + 1,
            lambda self, x: x + self.weight,
            lambda self, x: self.weight + self.weight,
            lambda self, x: x.reshape(x.shape[0] + x.shape[1] - 4, -1),
            lambda self, x: x + x.size(0),
            lambda self, x: x + torch.ones(4),
            lambda self, x: x - x.relu(),
            lambda self, x: x + torch.zeros_like(self.weight),
            lambda self, x: x[: x.shape[0] + x.shape[1] + 1],
        ],
    )
    def test_other_sums_are_no_residual(self, call: Callable[..., Tensor]) -> None:
        assert names(module(call, weight=nn.Parameter(torch.ones(4))), "residual") == []

    @pytest.mark.parametrize(
        "call",
        [
            lambda self, x: x + x.relu(),
            lambda self, x: x.add(x * 2),
            lambda self, x: torch.add(x, x * 2),
            lambda self, x: torch.add(input=x, other=x * 2),
            lambda self, x: torch.add(x, x * 2, alpha=3),
            lambda self, x: x.relu().add_(x),
            lambda self, x: sum([x, x * 2]),
        ],
    )
    def test_every_spelling_of_a_residual_is_one(self, call: Callable[..., Tensor]) -> None:
        model = module(call)
        assert len(names(model, "residual")) == 1
        hard = harden(model, sites="residual")
        set_bounds(hard, INFINITE)
        assert bitwise_equal(run(hard, (X,)), run(model, (X,)))


@dataclass
class Output:
    logits: Tensor
    hidden: Any = None


class TestLogits:
    @pytest.mark.parametrize(
        "make",
        [
            lambda y, z: (y, z),
            lambda y, z: [y, {"deep": z}],
            lambda y, z: {"a": y, "b": (z, 3)},
            Output,
            lambda y, z: Output(y, {"more": [z]}),
        ],
    )
    @pytest.mark.parametrize("frontend", ["symbolic", "export"])
    def test_they_are_found_in_any_output(self, make: Callable[..., Any], frontend: str) -> None:
        def forward(self: nn.Module, x: Tensor) -> Any:
            return make(self.head(x), (x * 2).exp())

        model = module(forward, head=nn.Linear(4, 3)).eval()
        assert names(model, "logits", example_inputs=(X,), frontend=frontend) == ["head", "exp"]
        hard = harden(model, "layer", "ranger", example_inputs=(X,), sites="logits", frontend=frontend)
        set_bounds(hard, {"head": (-0.1, 0.1), "exp": (0.0, 2.0)})
        flat: list[Tensor] = []
        with torch.no_grad():
            collect(hard(X), flat)
        assert flat[0].abs().max() == pytest.approx(0.1)
        assert flat[1].max() == 2.0

    def test_an_input_a_size_and_a_parameter_are_none(self) -> None:
        model = module(lambda self, x: (x, x.shape[0], self.weight, F.relu(x)), weight=nn.Parameter(torch.ones(2)))
        assert names(model, "logits") == ["relu"]

    def test_a_value_returned_twice_is_one(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Any:
            y = x * 2
            return y, {"again": y}

        assert names(module(forward), "logits") == ["mul"]

    def test_they_are_found_behind_a_view(self) -> None:
        hard = harden(module(lambda self, x: self.fc(x).view(-1, 3), fc=nn.Linear(4, 3)), sites="logits")
        set_bounds(hard, {"*": (-0.01, 0.01)})
        assert run(hard, (X * 1e4,))[0].abs().max() <= 0.0101


def collect(value: Any, into: list[Tensor]) -> None:
    """The tensors in a nested output."""
    if isinstance(value, Tensor):
        into.append(value)
    elif isinstance(value, Output | dict):
        collect(list((value if isinstance(value, dict) else vars(value)).values()), into)
    elif isinstance(value, tuple | list):
        for each in value:
            collect(each, into)
