"""Ranger's rules for what follows a bounded value: pools and reshapes keep its bounds, joins have the extremes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import module
from torch import Tensor, nn

import fitact_fx
from fitact_fx.bounded import bounded_sites
from fitact_fx.errors import SiteError
from fitact_fx.faults import BitFlip
from fitact_fx.followers import followers
from fitact_fx.granularity import Layer
from fitact_fx.hardening import bound_sites
from fitact_fx.models import resnet20
from fitact_fx.policies import Clamp
from fitact_fx.schemes.ranger import Ranger
from fitact_fx.sites import find_sites
from fitact_fx.spec import Spec
from fitact_fx.tracing import trace

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ACTIVATIONS = ("stem.1", "left.1", "right.1")


class Joined(nn.Module):
    """An Inception-like block: branches behind a pool, joined, pooled and flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(2)
        self.left = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GELU())
        self.right = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh())
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        y = torch.cat([F.avg_pool2d(x, 3, 1, 1), self.left(x), self.right(x)], 1)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1))


def joined() -> nn.Module:
    torch.manual_seed(1)
    return Joined().eval()


def seen(model: nn.Module, names: tuple[str, ...], data: list[Tensor]) -> dict[str, np.ndarray]:
    """Name of a module -> all it gave, by hooks on the untouched model."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: found[name].append(out.detach().numpy())
        )
    with torch.no_grad():
        for batch in data:
            model(batch)
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def ranges(hard: nn.Module) -> dict[str, tuple[float, float]]:
    """Name -> (least, greatest) bound, a ReLU's own least value where it has no lower one."""
    return {
        name: (bounded.minimum if bounded.lower is None else float(bounded.lower.min()), float(bounded.upper.max()))
        for name, bounded in bounded_sites(hard).items()
        if bounded.upper is not None
    }


@pytest.mark.parametrize("frontend", ["symbolic", "export"])
@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
def test_carried_bounds_are_the_extremes_of_what_is_joined(frontend: str, granularity: str) -> None:
    data = [X[:5], X[5:]] if frontend == "symbolic" else [X, X.flip(0)]
    scheme = Ranger(granularity=granularity)
    hard = fitact_fx.harden(joined(), scheme=scheme, data=data, example_inputs=(X,), frontend=frontend)
    clean = seen(joined(), ACTIVATIONS, data)
    stem, left, right = (clean[name] for name in ACTIVATIONS)
    stem_range = (0.0, stem.max())
    all_range = (min(0.0, left.min(), right.min()), max(stem.max(), left.max(), right.max()))
    expected = [stem_range, stem_range, stem_range, (left.min(), left.max()), (right.min(), right.max())]
    found = ranges(hard)
    assert list(found.values()) == [*expected, *[all_range] * 3], found
    sites = list(bounded_sites(hard).values())
    carriers = [bounded for bounded in sites if bounded.spec.carries]
    assert len(carriers) == 5
    assert all(bounded.spec.granularity == Layer() for bounded in carriers)
    for batch in data:
        assert torch.equal(hard(batch), joined()(batch))


@pytest.mark.parametrize("frontend", ["symbolic", "export"])
def test_means_greatest_and_least_values_stay_in_the_range_of_what_they_are_of(frontend: str) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        narrow, wide = self.tanh(x), self.gelu(3 * x)
        of_narrow = torch.stack([narrow.mean((2, 3)), narrow.amin(dim=(2, 3), keepdim=True).flatten(1)], 1)
        return torch.stack([torch.mean(wide, dim=[2, 3]), torch.amax(wide, (2, 3))], 1) + of_narrow

    model = module(forward, tanh=nn.Tanh(), gelu=nn.GELU()).eval()
    hard = fitact_fx.harden(model, scheme="ranger", data=[X], example_inputs=(X,), frontend=frontend)
    clean = seen(model, ("tanh", "gelu"), [X])
    narrow, wide = ((values.min(), values.max()) for values in clean.values())
    assert list(ranges(hard).values()) == [narrow, wide, *[narrow] * 4, *[wide] * 3], ranges(hard)
    assert torch.equal(hard(X), model(X))


def test_the_average_pool_of_a_resnet_is_bounded_although_it_is_written_as_a_mean() -> None:
    torch.manual_seed(3)
    images = torch.randn(2, 3, 32, 32)
    found = ranges(fitact_fx.harden(resnet20(), scheme="ranger", data=[images]))
    assert list(found)[-2:] == ["layer3.2.relu_1", "mean"]
    assert found["mean"] == found["layer3.2.relu_1"]


POOLS = {"pool": lambda self, y: self.pool(y).flatten(1), "mean": lambda self, y: y.mean((2, 3)).repeat(1, 16)}


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("name", POOLS)
def test_a_fault_behind_a_pool_is_clamped_before_it_goes_on(name: str, follow: bool) -> None:
    """The pool itself goes wrong: no bound but its own is between it and the head."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.head(POOLS[name](self, self.relu(x)))

    torch.manual_seed(2)
    model = module(forward, relu=nn.ReLU(), pool=nn.MaxPool2d(2), head=nn.Linear(48, 5)).eval()
    hard = fitact_fx.harden(model, scheme=Ranger(follow=follow), data=[X])
    inside: list[Tensor] = []
    hard.head.register_forward_pre_hook(lambda _, args: inside.append(args[0]))
    fault = BitFlip(count=1, bits=(30,))
    faulty = fitact_fx.inject(hard, name, fault, "before", format="float32", example_inputs=(X,))
    faulty(X)
    limit = float(X.max()) * (1 + 2.0**-9)
    assert (float(inside[-1].abs().max()) <= limit) is follow


def test_densely_joined_values_are_followed_through_views_and_parts() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        first = self.relu(x)
        second = F.leaky_relu(self.conv(first))
        halves = torch.cat([first, second], 1).chunk(2, dim=1)
        return torch.cat([halves[0].permute(0, 2, 3, 1), halves[1].permute(0, 2, 3, 1)], -1).reshape(8, -1)

    model = module(forward, relu=nn.ReLU(), conv=nn.Conv2d(3, 3, 1)).eval()
    hard = fitact_fx.harden(model, scheme="ranger", data=[X])
    assert {name: bounded.spec.carries for name, bounded in bounded_sites(hard).items()} == {
        "relu": (),
        "leaky_relu": (),
        "cat": ("relu", "leaky_relu"),
        "cat_1": ("cat",),
        "reshape": ("cat_1",),
    }
    assert torch.equal(hard(X), model(X))


def relu_then(call):
    return module(lambda self, x: call(self.relu(x)), relu=nn.ReLU()).eval()


def written_later(y: Tensor) -> Tensor:
    flat = y.flatten(1)
    y.mul_(3.0)
    return flat + 1


def written_through_a_view(y: Tensor) -> Tensor:
    y.view(-1)[0] = 1e6
    return F.max_pool2d(y, 2)


LEFT_OUT = {
    "indices": lambda y: F.max_pool2d(y, 2, return_indices=True)[0],
    "a divisor of its own": lambda y: F.avg_pool2d(y, 2, divisor_override=1),
    "a window in the padding": lambda y: F.max_pool1d(y[:, 0, :1, 0], 2, 1, padding=1, dilation=3),
    "a view written later": written_later,
    "a source written through a view": written_through_a_view,
    "bits for numbers": lambda y: y.view(torch.int32),
    "one input unbounded": lambda y: torch.cat([y, 2 * y]),
    "the sum of a window": lambda y: F.lp_pool2d(y, 1.0, 2),
    "a mean of its own type": lambda y: y.mean((2, 3), dtype=torch.float64),
    "greatest values with their places": lambda y: y.max(1)[0],
    "dropout": lambda y: F.dropout(y, 0.5, training=True),
}


@pytest.mark.parametrize("why", LEFT_OUT)
def test_what_may_leave_the_range_on_clean_data_is_no_follower(why: str) -> None:
    model = relu_then(LEFT_OUT[why])
    graph_module = trace(model)
    assert followers(graph_module, find_sites(graph_module)) == {}
    if why != "a window in the padding":
        hard = fitact_fx.harden(model, scheme="ranger", data=[X])
        torch.manual_seed(0)
        expected = model(X)
        torch.manual_seed(0)
        assert torch.equal(hard(X), expected)


def test_an_average_over_counted_padding_has_zero_in_its_range() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.tanh(x), 3, 1, 1)

    model, high = module(forward, tanh=nn.Tanh()).eval(), X.abs() + 1
    hard = fitact_fx.harden(model, scheme="ranger", data=[high])
    lower, upper = fitact_fx.bounds(hard)["avg_pool2d"]
    assert fitact_fx.bounds(hard)["tanh"][0] == np.tanh(high.numpy()).min()
    assert (lower, upper) == (0.0, np.tanh(high.numpy()).max())
    assert torch.equal(hard(high), model(high))


def test_a_source_that_is_set_by_hand_takes_its_followers_along_but_those_set_themselves() -> None:
    hard = fitact_fx.harden(joined(), scheme="ranger", data=[X])
    before = ranges(hard)
    fitact_fx.set_bounds(hard, {"stem.1": (None, 100.0), "cat": (-1.0, 7.0)})
    after = ranges(hard)
    assert after["pool"] == after["avg_pool2d"] == (0.0, 100.0)
    assert after["cat"] == after["adaptive_avg_pool2d"] == after["flatten"] == (-1.0, 7.0)
    assert after["left.1"] == before["left.1"]
    fitact_fx.set_bounds(hard, {"*": (-torch.inf, torch.inf)})
    assert set(ranges(hard).values()) == {(-np.inf, np.inf)}


def of_each(first: tuple, second: tuple) -> tuple:
    """What a concatenation of a ReLU and a GELU carries, when these are set by hand."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([self.relu(x), self.gelu(x)])

    hard = fitact_fx.harden(module(forward, relu=nn.ReLU(), gelu=nn.GELU()).eval(), scheme="ranger", data=[X])
    fitact_fx.set_bounds(hard, {"relu": first, "gelu": second})
    return fitact_fx.bounds(hard)["cat"]


@pytest.mark.parametrize(
    ("relu", "gelu", "carried"),
    [
        ((None, 2.0), (-0.25, 3.0), (-0.25, 3.0)),
        ((None, 2.0), (0.5, 1.0), (0.0, 2.0)),
        ((0.25, 2.0), (0.5, 1.0), (0.25, 2.0)),
        ((None, 2.0), (None, 3.0), (None, 3.0)),
        ((0.25, None), (0.5, 1.0), (0.25, None)),
        ((0.25, 2.0), (None, 1.0), (None, 2.0)),
        ((0.25, None), (None, 1.0), (-np.inf, np.inf)),
    ],
)
def test_a_side_that_is_free_in_one_source_is_free_behind_a_join(relu: tuple, gelu: tuple, carried: tuple) -> None:
    assert of_each(relu, gelu) == carried


def test_followers_are_saved_loaded_and_lowered(tmp_path) -> None:
    hard = fitact_fx.harden(joined(), scheme=Ranger(percentile=99.0), data=[X])
    fitact_fx.save(hard, tmp_path / "bounds")
    loaded = fitact_fx.load(tmp_path / "bounds", joined())
    assert torch.equal(loaded(3 * X), hard(3 * X))
    specs = [[bounded.spec for bounded in bounded_sites(each).values()] for each in (hard, loaded)]
    assert specs[0] == specs[1]
    assert loaded.meta["scheme"] == Ranger(percentile=99.0)
    lowered = fitact_fx.lower(hard, (3 * X,), backend="eager")
    assert torch.equal(lowered(3 * X), hard(3 * X))


def test_a_carrier_without_its_source_is_refused() -> None:
    graph_module = trace(joined())
    with pytest.raises(SiteError, match=r"it carries the bounds of stem\.1, which has none before it"):
        bound_sites(graph_module, {"pool": Spec(Layer(), Clamp(), carries=("stem.1",))})


def test_followers_are_no_sites_of_their_own() -> None:
    found = find_sites(trace(joined()), lambda site: True)
    assert not {"pool", "cat", "flatten"} & {site.name for site in found}
