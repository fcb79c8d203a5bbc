"""Finding activations: every kind in every spelling, and what users call them."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_models import hardened_like, kinds, module, run
from torch import Tensor, nn

from fitact_fx.hardening import bounds, calibrate, harden
from fitact_fx.kinds import KINDS
from fitact_fx.sites import find_sites
from fitact_fx.tracing import trace

X = torch.linspace(-3, 3, 24).reshape(2, 3, 4)

# Written out by hand, not read from KINDS: this is the list that the table must cover.
MODULES = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky_relu": nn.LeakyReLU(0.1),
    "prelu": nn.PReLU(),
    "elu": nn.ELU(),
    "selu": nn.SELU(),
    "celu": nn.CELU(),
    "gelu": nn.GELU("tanh"),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardtanh": nn.Hardtanh(-1, 2),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "softplus": nn.Softplus(),
    "softsign": nn.Softsign(),
    "threshold": nn.Threshold(0.1, 0.05),
    "glu": nn.GLU(),
    "softmax": nn.Softmax(dim=-1),
    "softmin": nn.Softmin(dim=-1),
    "log_softmax": nn.LogSoftmax(dim=-1),
    "logsigmoid": nn.LogSigmoid(),
    "rrelu": nn.RReLU(),
    "hardshrink": nn.Hardshrink(),
    "softshrink": nn.Softshrink(),
    "tanhshrink": nn.Tanhshrink(),
}
FUNCTIONS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("relu", F.relu),
    ("relu", F.relu_),
    ("relu", torch.relu),
    ("relu", torch.relu_),
    ("relu", lambda x: x.relu()),
    ("relu", lambda x: x.relu_()),
    ("relu", lambda x: F.relu(x, True)),
    ("relu", lambda x: F.relu(input=x, inplace=True)),
    ("relu", lambda x: x.clamp(min=0)),
    ("relu", lambda x: x.clamp(0)),
    ("relu", lambda x: x.clamp(0.0, None)),
    ("relu", lambda x: x.clamp_(min=0)),
    ("relu", lambda x: x.clamp_min(0)),
    ("relu", lambda x: x.clamp_min_(0)),
    ("relu", lambda x: torch.clamp(x, min=0)),
    ("relu", lambda x: torch.clamp_(x, min=0.0)),
    ("relu", lambda x: torch.clamp_min(x, 0)),
    ("relu", lambda x: torch.clip(x, 0)),
    ("relu", lambda x: x.clip_(min=0)),
    ("relu", lambda x: torch.maximum(x, torch.zeros_like(x))),
    ("relu", lambda x: torch.maximum(torch.zeros_like(x), x)),
    ("relu", lambda x: torch.maximum(x, torch.tensor(0.0))),
    ("relu", lambda x: torch.max(x, torch.zeros(4))),
    ("relu", lambda x: torch.max(x, other=x.new_zeros(4))),
    ("relu", lambda x: x.maximum(torch.zeros(1))),
    ("relu", lambda x: x.max(torch.zeros(1))),
    ("relu6", F.relu6),
    ("relu6", lambda x: F.relu6(x, inplace=True)),
    ("relu6", lambda x: x.clamp(0, 6)),
    ("relu6", lambda x: torch.clamp(x, min=0.0, max=6.0)),
    ("leaky_relu", F.leaky_relu),
    ("leaky_relu", lambda x: F.leaky_relu(x, 0.3, True)),
    ("leaky_relu", F.leaky_relu_),
    ("prelu", lambda x: F.prelu(x, torch.tensor([0.2]))),
    ("prelu", lambda x: torch.prelu(x, torch.tensor([0.2]))),
    ("prelu", lambda x: x.prelu(torch.tensor([0.2]))),
    ("elu", F.elu),
    ("elu", F.elu_),
    ("elu", lambda x: F.elu(x, 0.5, inplace=True)),
    ("selu", F.selu),
    ("selu", F.selu_),
    ("selu", torch.selu),
    ("selu", torch.selu_),
    ("celu", F.celu),
    ("celu", F.celu_),
    ("celu", torch.celu),
    ("celu", torch.celu_),
    ("gelu", F.gelu),
    ("gelu", lambda x: F.gelu(x, approximate="tanh")),
    ("silu", F.silu),
    ("silu", lambda x: F.silu(x, inplace=True)),
    ("mish", F.mish),
    ("mish", lambda x: F.mish(x, inplace=True)),
    ("hardswish", F.hardswish),
    ("hardswish", lambda x: F.hardswish(x, True)),
    ("hardsigmoid", F.hardsigmoid),
    ("hardsigmoid", lambda x: F.hardsigmoid(x, inplace=True)),
    ("hardtanh", F.hardtanh),
    ("hardtanh", F.hardtanh_),
    ("hardtanh", lambda x: F.hardtanh(x, -2.0, 2.0, True)),
    ("hardtanh", lambda x: x.clamp(-1, 1)),
    ("sigmoid", F.sigmoid),
    ("sigmoid", torch.sigmoid),
    ("sigmoid", torch.sigmoid_),
    ("sigmoid", torch.special.expit),
    ("sigmoid", lambda x: x.sigmoid()),
    ("sigmoid", lambda x: x.sigmoid_()),
    ("tanh", F.tanh),
    ("tanh", torch.tanh),
    ("tanh", torch.tanh_),
    ("tanh", lambda x: x.tanh()),
    ("tanh", lambda x: x.tanh_()),
    ("softplus", F.softplus),
    ("softsign", F.softsign),
    ("threshold", lambda x: F.threshold(x, 0.1, 0.05)),
    ("threshold", lambda x: F.threshold(x, 0.1, 0.05, True)),
    ("threshold", lambda x: F.threshold_(x, 0.1, 0.05)),
    ("threshold", lambda x: torch.threshold(x, 0.1, 0.05)),
    ("glu", F.glu),
    ("glu", lambda x: F.glu(x, -1)),
    ("softmax", lambda x: F.softmax(x, dim=-1)),
    ("softmax", lambda x: torch.softmax(x, 1)),
    ("softmax", lambda x: torch.special.softmax(x, 1)),
    ("softmax", lambda x: x.softmax(-1)),
    ("softmin", lambda x: F.softmin(x, dim=-1)),
    ("log_softmax", lambda x: F.log_softmax(x, dim=-1)),
    ("log_softmax", lambda x: torch.log_softmax(x, 1)),
    ("log_softmax", lambda x: torch.special.log_softmax(x, 1)),
    ("log_softmax", lambda x: x.log_softmax(-1)),
    ("logsigmoid", F.logsigmoid),
    ("rrelu", F.rrelu),
    ("rrelu", torch.rrelu),
    ("rrelu", torch.rrelu_),
    ("rrelu", lambda x: F.rrelu(x, inplace=True)),
    ("hardshrink", F.hardshrink),
    ("hardshrink", torch.hardshrink),
    ("hardshrink", lambda x: x.hardshrink()),
    ("softshrink", F.softshrink),
    ("tanhshrink", F.tanhshrink),
]
# Activations written out: the product is a site, and so is the gate in it.
WRITTEN_OUT: list[Callable[[Tensor], Tensor]] = [
    lambda x: x * torch.sigmoid(x),
    lambda x: x * torch.sigmoid(1.702 * x),
    lambda x: 0.5 * x * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2))),
    lambda x: x * (F.relu6(x + 3) / 6),
    lambda x: x * torch.tanh(F.softplus(x)),
    lambda x: x.mul(x.sigmoid()),
    lambda x: (y := x * 1).mul_(y.sigmoid()),
]
GATED_BY_OTHERS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
    lambda x: x * torch.sigmoid(torch.ones(4)),
    lambda x: x.flip(0) * x.sigmoid(),
    lambda x: x * x,
    lambda x: x * 2 * torch.exp(torch.ones(4).clamp(max=1)),
]
NOT_ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    lambda x: torch.max(x, 0).values,
    lambda x: x.max(1)[0],
    lambda x: torch.max(x, dim=0)[0],
    lambda x: x.max(),
    lambda x: torch.maximum(x, x.flip(0)),
    lambda x: torch.maximum(x, torch.ones(4)),
    lambda x: x.clamp(max=6),
    lambda x: x.clamp(min=1e-6),
    lambda x: x.clamp(x.mean(), 1.0),
    lambda x: torch.minimum(x, torch.zeros(4)),
]


def test_the_table_has_every_kind() -> None:
    assert {kind.name for kind in KINDS} == set(MODULES)


@pytest.mark.parametrize("call", WRITTEN_OUT)
def test_an_activation_that_is_written_out_is_one(call: Callable[[Tensor], Tensor]) -> None:
    model = module(lambda self, x: call(x))
    assert "self_gated" in kinds(model).values()
    hardened_like(model, X)


@pytest.mark.parametrize("call", GATED_BY_OTHERS)
def test_a_product_with_anything_else_is_none(call: Callable[[Tensor], Tensor]) -> None:
    assert "self_gated" not in kinds(module(lambda self, x: call(x))).values()


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_module_is_found_and_stays_what_it_was(kind: str, inplace: bool) -> None:
    activation = MODULES[kind]
    if hasattr(activation, "inplace"):
        activation.inplace = inplace
    model = module(lambda self, x: (y := x * 1, self.act(y), y), act=activation)
    assert kinds(model) == {"act": kind}
    hardened_like(model, X)


@pytest.mark.parametrize(("kind", "spelling"), FUNCTIONS)
def test_every_spelling_is_found_and_stays_what_it_was(kind: str, spelling: Callable[[Tensor], Tensor]) -> None:
    model = module(lambda self, x: (y := x * 1, spelling(y), y))
    assert list(kinds(model).values()) == [kind]
    hardened_like(model, X)


@pytest.mark.parametrize("spelling", NOT_ACTIVATIONS)
def test_a_reduction_or_another_clamp_is_no_site(spelling: Callable[[Tensor], Tensor]) -> None:
    assert kinds(module(lambda self, x: spelling(x))) == {}


@pytest.mark.parametrize(("kind", "activation"), MODULES.items())
def test_the_least_value_of_a_kind_is_one_that_it_keeps(kind: str, activation: nn.Module) -> None:
    (site,) = find_sites(trace(module(lambda self, x: self.act(x), act=activation)))
    assert (activation(torch.linspace(-50, 50, 1000)) >= site.minimum).all()
    one_sided = {"relu", "relu6", "hardsigmoid", "sigmoid", "softplus", "softmax", "softmin"}
    assert site.minimum == (0.0 if kind in one_sided else -torch.inf)


@pytest.mark.parametrize("name", ["gelu", "tanh", "leaky_relu"])
def test_a_two_sided_kind_gets_both_bounds_and_a_one_sided_kind_the_upper(name: str) -> None:
    hard = harden(module(lambda self, x: self.two(self.one(x) - 1), one=nn.ReLU(), two=MODULES[name]), "layer")
    calibrate(hard, [X])
    assert [lower is None for lower, _ in bounds(hard).values()] == [True, False]
    assert all(upper is not None for _, upper in bounds(hard).values())


class TestNames:
    def test_a_shared_module_is_one_site_per_call(self) -> None:
        model = module(lambda self, x: self.relu(self.relu(x) - 1) + self.relu(x), relu=nn.ReLU(inplace=True))
        assert list(kinds(model)) == ["relu", "relu_1", "relu_2"]

    def test_a_second_call_never_takes_the_name_of_another_module(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            return self.relu_1(self.relu(self.relu(x) - 1) - 1)

        hard = hardened_like(module(forward, relu=nn.ReLU(), relu_1=nn.ReLU()), X)
        assert list(bounds(hard)) == ["relu", "relu_2", "relu_1"]

    def test_names_are_paths_as_users_write_them(self) -> None:
        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.relu = nn.ReLU()

            def forward(self, x: Tensor) -> Tensor:
                return torch.relu(self.relu(self.relu(x) - 1).clamp(min=0)).sigmoid()

        model = nn.Sequential()
        model.add_module("layer1", nn.Sequential(Block()))
        model.add_module("features", nn.Sequential(nn.Identity(), nn.GELU()))
        assert list(kinds(model)) == [
            "layer1.0.relu",
            "layer1.0.relu_1",
            "layer1.0.clamp",
            "layer1.0.relu_2",
            "layer1.0.sigmoid",
            "features.1",
        ]

    def test_a_function_in_the_root_has_its_own_name(self) -> None:
        assert list(kinds(module(lambda self, x: F.relu(F.gelu(x))))) == ["gelu", "relu"]

    def test_a_second_trace_finds_the_same_sites(self) -> None:
        model = module(lambda self, x: self.a(F.relu(self.a(x))).clamp_min(0), a=nn.ReLU(inplace=True))
        first, second = find_sites(trace(model)), find_sites(trace(model))
        assert first == second
        assert list(bounds_of(model)) == [site.name for site in first]

    def test_a_module_under_two_names_keeps_the_first(self) -> None:
        act = nn.ReLU()
        model = module(lambda self, x: self.b(self.a(x) - 1), a=act, b=act)
        assert list(kinds(model)) == ["a", "a_1"]

    def test_torchvision_names_are_torchvisions(self) -> None:
        torchvision = pytest.importorskip("torchvision")
        names = list(kinds(torchvision.models.resnet18(weights=None)))
        assert names[:5] == ["relu", "layer1.0.relu", "layer1.0.relu_1", "layer1.1.relu", "layer1.1.relu_1"]
        assert len(names) == 17
        assert list(kinds(torchvision.models.vgg11(weights=None)))[:2] == ["features.1", "features.4"]


def bounds_of(model: nn.Module) -> dict[str, object]:
    return dict(bounds(harden(model)))


class Shifted(nn.ReLU):
    """An activation with a forward of its own, which gives negative values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - 0.5


class Named(nn.ReLU):
    """A subclass that changes nothing."""


class TestCustomActivations:
    def test_a_subclass_that_changes_nothing_is_the_activation(self) -> None:
        model = module(lambda self, x: (y := x * 1, self.act(y), y), act=Named(inplace=True))
        assert kinds(model) == {"act": "relu"}
        hardened_like(model, X)

    def test_a_subclass_with_its_own_forward_stays_what_it_was_and_is_bounded_inside(self) -> None:
        model = module(lambda self, x: (y := x * 1, self.act(y), y), act=Shifted(inplace=True))
        assert kinds(model) == {"act.relu": "relu"}
        hard = hardened_like(model, X)
        calibrate(hard, [X])
        assert torch.equal(run(hard, (X,))[0], run(model, (X,))[0])

    def test_a_replaced_forward_of_an_activation_is_followed(self) -> None:
        act = nn.ReLU()
        act.forward = lambda x: F.leaky_relu_(x, 0.5)
        model = module(lambda self, x: (y := x * 1, self.act(y), y), act=act)
        assert kinds(model) == {"act.leaky_relu": "leaky_relu"}
        hardened_like(model, X)

    def test_a_hook_on_an_activation_still_runs_and_makes_it_two_sided(self) -> None:
        act = nn.ReLU()
        act.register_forward_hook(lambda module, args, output: output - 1)
        model = module(lambda self, x: self.act(x), act=act)
        assert find_sites(trace(model))[0].minimum == -torch.inf
        hard = harden(model, "layer")
        calibrate(hard, [X])
        assert bounds(hard)["act"][0] == -1
        assert torch.equal(run(hard, (X,))[0], run(model, (X,))[0])

    def test_a_buffer_of_zeros_that_a_state_could_change_makes_maximum_two_sided(self) -> None:
        model = module(lambda self, x: torch.maximum(x, self.floor), floor=torch.zeros(4))
        hard = harden(model, "layer")
        calibrate(hard, [X])
        state = hard.state_dict()
        state["floor"] = torch.full((4,), -1.0)
        hard.load_state_dict(state)
        model.load_state_dict({"floor": state["floor"]})
        calibrate(hard, [X])
        assert torch.equal(run(hard, (X,))[0], run(model, (X,))[0])
