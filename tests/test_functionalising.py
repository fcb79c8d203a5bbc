"""In-place activations: every later reader of the changed memory sees the bounded value."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from programs import ACTIVATIONS, SHAPE, Program
from small_models import INFINITE, bitwise_equal, hardened_like, module, run
from torch import Tensor, nn

from fitact_fx import granularity, policies
from fitact_fx.errors import SiteError
from fitact_fx.hardening import harden, set_bounds
from fitact_fx.passes import apply
from fitact_fx.passes.bounding import Bound
from fitact_fx.passes.functionalising import Functionalise
from fitact_fx.sites import find_sites
from fitact_fx.spec import Spec
from fitact_fx.tracing import trace

X = torch.tensor([[-2.0, 3.0, 0.5, 9.0], [1.0, -1.0, 8.0, 0.25]])
LIMIT = 2.0


def beyond(x: Tensor) -> Tensor:
    """What relu and its bound at LIMIT make of a value, written down without either."""
    return torch.where((x > 0) & (x <= LIMIT), x, 0.0)


# Each: an in-place forward, and by hand what it gives when everyone reads bounded values.
Forward = Callable[..., Any]


def out_of(forward: Forward, by_hand: Callable[[Tensor], Any], name: str) -> Any:
    return pytest.param(forward, by_hand, id=name)


def residual(self: nn.Module, x: Tensor) -> Any:
    identity = x
    out = x * 0.5
    out += identity
    F.relu_(out)
    return out, identity


def residual_on_identity(self: nn.Module, x: Tensor) -> Any:
    h = x * 1
    identity = h
    out = F.relu_(h) * 2
    return out + identity, identity


def two_in_a_row(self: nn.Module, x: Tensor) -> Any:
    h = x * 1
    a = F.relu_(h)
    b = h.clamp_(min=0)
    return h, a, b


def result_of_first_is_changed_by_second(self: nn.Module, x: Tensor) -> Any:
    h = x * 1
    a = F.relu_(h)
    h.neg_()
    return a, h, F.relu_(a), h


def half(self: nn.Module, x: Tensor) -> Any:
    h = x * 1
    F.relu_(h[:, :2])
    return h


def half_by_hand(x: Tensor) -> Tensor:
    return torch.cat((beyond(x[:, :2]), x[:, 2:]), 1)


def through(view: Callable[[Tensor], Tensor]) -> Forward:
    def forward(self: nn.Module, x: Tensor) -> Any:
        h = x * 1
        v = view(h)
        F.relu_(v)
        return h, v * 1

    return forward


def backwards_through(view: Callable[[Tensor], Tensor]) -> Forward:
    def forward(self: nn.Module, x: Tensor) -> Any:
        h = x * 1
        v = view(h)
        F.relu_(h)
        return h, v * 1

    return forward


def chunks(self: nn.Module, x: Tensor) -> Any:
    h = x * 1
    a, b = h.chunk(2, 1)
    F.relu_(a)
    return h, a + b


def later_chunk(self: nn.Module, x: Tensor) -> Any:
    h = x * 1
    parts = h.split(2, 1)
    F.relu_(h)
    return parts[0] * 1, parts[1] * 1


def arithmetic_after(self: nn.Module, x: Tensor) -> Any:
    h = x * 1
    y = F.relu_(h)
    h += 1
    y *= 2
    return h, y


def item_after(self: nn.Module, x: Tensor) -> Any:
    h = x * 1
    y = F.relu_(h)
    h[:, 0] = 7.0
    return y


def item_after_by_hand(x: Tensor) -> Tensor:
    y = beyond(x).clone()
    y[:, 0] = 7.0
    return y


def out_of_place_then_changed(self: nn.Module, x: Tensor) -> Any:
    h = x * 1
    y = F.relu(h)
    h.zero_()
    z = y
    z += 1
    return y, h


CASES = [
    out_of(residual, lambda x: (beyond(x * 0.5 + x), x), "residual"),
    out_of(residual_on_identity, lambda x: (beyond(x) * 3, beyond(x)), "residual on the identity"),
    out_of(two_in_a_row, lambda x: (beyond(x),) * 3, "two in a row"),
    out_of(result_of_first_is_changed_by_second, lambda x: (torch.zeros_like(x),) * 4, "changed by a second"),
    out_of(half, half_by_hand, "slice, result thrown away"),
    out_of(chunks, lambda x: (half_by_hand(x), beyond(x[:, :2]) + x[:, 2:]), "chunk"),
    out_of(later_chunk, lambda x: (beyond(x[:, :2]), beyond(x[:, 2:])), "split read later"),
    out_of(arithmetic_after, lambda x: (2 * (beyond(x) + 1),) * 2, "arithmetic after it"),
    out_of(item_after, item_after_by_hand, "item set after it"),
    out_of(out_of_place_then_changed, lambda x: (beyond(x) + 1, torch.zeros_like(x)), "input changed after it"),
]
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda v: v.view(4, 2),
    "reshape": lambda v: v.reshape(-1),
    "flatten": lambda v: v.flatten(),
    "transpose": lambda v: v.t(),
    "permute": lambda v: v.permute(1, 0),
    "detach": lambda v: v.detach(),
    "unsqueeze": lambda v: v.unsqueeze(1),
    "dropout in evaluation mode": lambda v: F.dropout(v, training=False),
    "contiguous": lambda v: v.contiguous(),
    "expand": lambda v: v.expand(2, 4),
    "to": lambda v: v.to(torch.float32),
    "attribute mT": lambda v: v.mT,
}
for name, view in VIEWS.items():
    by_hand = lambda x, view=view: (beyond(x), view(beyond(x)))  # noqa: E731  a closure per row of the table
    CASES.append(out_of(through(view), by_hand, f"through {name}"))
    CASES.append(out_of(backwards_through(view), by_hand, f"read through {name} taken before"))


@pytest.mark.parametrize(("forward", "by_hand"), CASES)
class TestReaders:
    def test_with_infinite_bounds_everyone_reads_what_they_read_before(self, forward: Forward, by_hand: Any) -> None:
        hardened_like(module(forward), X)

    def test_with_finite_bounds_everyone_reads_the_bounded_value(self, forward: Forward, by_hand: Any) -> None:
        hard = harden(module(forward), "layer")
        set_bounds(hard, {"*": (None, LIMIT)})
        expected = by_hand(X)
        assert bitwise_equal(run(hard, (X,)), [*(expected if isinstance(expected, tuple) else (expected,)), X])


WITH_ACTIVATIONS = [
    seed for seed in range(42) if any(step[0] in (*ACTIVATIONS, "thrown away") for step in Program(seed).steps)
]


@pytest.mark.parametrize("seed", WITH_ACTIVATIONS)
def test_a_random_program_does_what_eager_pytorch_does(seed: int) -> None:
    model = Program(seed).train(seed % 2 == 0)
    inputs = (torch.randn(SHAPE), torch.randn(SHAPE))
    hard = harden(model, "layer")
    bounded = copy.deepcopy(hard)
    set_bounds(hard, INFINITE)
    set_bounds(bounded, {"*": (None, 0.5)})
    reference, limited = copy.deepcopy(model), copy.deepcopy(model)
    limited.limit = 0.5 * (1 + 1.25 * 2**-10)  # the bound and its documented slack
    for _ in range(2):
        assert bitwise_equal(run(hard, inputs, seed), run(reference, inputs, seed)), model
        assert bitwise_equal(run(bounded, inputs, seed), run(limited, inputs, seed)), model


class TestOutsideTheGraph:
    def test_an_argument_is_changed_as_the_model_changes_it(self) -> None:
        model = module(lambda self, x: F.relu_(x).sum())
        hard = hardened_like(model, X)
        set_bounds(hard, {"*": (None, LIMIT)})
        assert torch.equal(run(hard, (X,))[1], beyond(X))

    def test_an_argument_changed_through_a_view_too(self) -> None:
        hardened_like(module(lambda self, x: (F.relu_(x.view(-1)[:3]), x)), X)

    def test_a_buffer_is_changed_and_stays_changed(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            F.leaky_relu_(self.state, 0.5)
            return x + self.state

        model = module(forward, state=torch.tensor([-1.0, 2.0, -3.0, 4.0]))
        hardened_like(model, X)
        hard = harden(model)
        run(hard, (X,))
        assert torch.equal(model.state, torch.tensor([-1.0, 2.0, -3.0, 4.0]))
        assert torch.equal(hard.state, torch.tensor([-0.5, 2.0, -1.5, 4.0]))


class TestSharedModules:
    def test_a_shared_module_partly_bounded_leaves_the_other_call_as_it_was(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Any:
            a, b = x * 1, x * 2
            self.relu(a)
            self.relu(b)
            return a, b

        graph_module = trace(module(forward, relu=nn.ReLU(inplace=True)))
        spec = Spec(granularity.named("layer"), policies.named("zero"))
        touched = apply(graph_module, Functionalise(), Bound({"relu_1": spec}))
        assert touched == (("relu", "relu_1"), ("relu_1",))
        set_bounds(graph_module, {"*": (None, LIMIT)})
        assert bitwise_equal(run(graph_module, (X,)), [X.relu(), beyond(2 * X), X])

    def test_a_subset_by_granularity_mapping_bounds_each_as_asked(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(inplace=True))
        hard = harden(model, {"*": "layer", "3": "neuron"})
        set_bounds(hard, INFINITE)
        assert bitwise_equal(run(hard, (X,)), run(model, (X,)))
        assert model[1].inplace
        assert not hard.get_submodule("1").inplace


def test_the_pass_returns_the_sites_it_rewrote_and_leaves_other_graphs_alone() -> None:
    graph_module = trace(module(lambda self, x: F.relu_(F.relu(x) * 1)))
    assert apply(graph_module, Functionalise()) == (("relu_1",),)
    assert not any(site.inplace for site in find_sites(graph_module))
    before = str(graph_module.graph)
    assert apply(graph_module, Functionalise()) == ((),)
    assert str(graph_module.graph) == before


def test_bounding_an_activation_that_overwrites_its_input_is_refused() -> None:
    graph_module = trace(module(lambda self, x: F.relu_(x * 1)))
    with pytest.raises(SiteError, match=r"site relu \(test_functionalising.py:.*F.relu_\(x \* 1\)") as refused:
        Bound({"relu": Spec(granularity.named("layer"), policies.named("zero"))})(graph_module)
    assert "run passes.functionalising.Functionalise first" in str(refused.value)


def test_a_flag_that_depends_on_the_mode_is_refused_with_the_line() -> None:
    model = module(lambda self, x: F.relu(x * 1, inplace=not self.training))
    with pytest.raises(SiteError, match="whether it overwrites its input is decided while the model runs") as refused:
        harden(model)
    assert "site relu (test_functionalising.py:" in str(refused.value)


def views(self: nn.Module, x: Tensor) -> Tensor:
    h = self.linear(x)
    F.leaky_relu_(h[:, :2], 0.1)
    return h * h


def plain(self: nn.Module, x: Tensor) -> Tensor:
    h = self.linear(x)
    h += x
    F.hardtanh_(h, -2.0, 2.5)
    y = self.linear(h)
    y += h
    return F.silu(y, inplace=True) + y


@pytest.mark.parametrize("forward", [views, plain])
def test_gradients_are_the_models(forward: Forward) -> None:
    model = module(forward, linear=nn.Linear(4, 4))
    hard = harden(model)
    set_bounds(hard, INFINITE)
    gradients = []
    for each in (model, hard):
        x = X.clone().requires_grad_()
        each(x).sum().backward()
        gradients.append([x.grad, model.linear.weight.grad.clone()])
        model.linear.weight.grad = None
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("forward", [half, arithmetic_after], ids=lambda each: each.__name__)
def test_a_rewritten_graph_compiles_as_one(forward: Forward) -> None:
    hard = harden(module(forward), "layer")
    set_bounds(hard, {"*": (None, LIMIT)})
    compiled = torch.compile(hard, fullgraph=True, backend="aot_eager")
    assert bitwise_equal(run(compiled, (X,)), run(hard, (X,)))
