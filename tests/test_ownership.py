"""The user's model is never changed: everything is a copy except the Parameters."""

import copy
import threading
import warnings
from typing import Any

import pytest
import torch
from small_models import INFINITE, bitwise_equal, hardened_like, module, run
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from fitact_fx.hardening import calibrate, harden, set_bounds
from fitact_fx.ownership import buffers_kept, owned_copy
from fitact_fx.tracing import trace

X = torch.linspace(-3, 3, 32).reshape(8, 4)


class Tied(nn.Module):
    """Tied Parameters, shared and unused modules, buffers of both sorts, a plain tensor, names out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("late", torch.zeros(4))
        self.second = nn.Linear(4, 4, bias=False)
        self.first = nn.Linear(4, 4, bias=False)
        self.first.weight = self.second.weight
        self.norm = self.again = nn.BatchNorm1d(4)
        self.unused = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.scale = nn.Parameter(torch.ones(4))
        self.alias = self.scale
        self.register_buffer("passing", torch.ones(4), persistent=False)
        self.inner = module(lambda self, x: x + self.shift, shift=torch.zeros(4))
        self.inner.register_buffer("passing", torch.ones(4), persistent=False)
        self.plain = torch.full((4,), 0.5)
        self.nothing = None
        self.register_buffer("empty", None)
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.norm(self.first(x)).relu_() * self.scale + self.late)
        return self.second(self.inner(x) * self.passing - self.plain).relu()


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "state": {name: (id(value), value.clone()) for name, value in model.named_parameters()},
        "buffers": {name: (id(value), value.clone(), value._version) for name, value in model.named_buffers()},
        "modes": [each.training for each in model.modules()],
        "trainable": [each.requires_grad for each in model.parameters()],
        "hooks": [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules()],
        "inplace": [getattr(each, "inplace", None) for each in model.modules()],
        "modules": [id(each) for each in model.modules()],
        "attributes": [sorted(vars(each)) for each in model.modules()],
    }


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(torch.equal(one, other)) if isinstance(one, Tensor) else bool(one == other)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_users_model_changes(training: bool) -> None:
    model = Tied().train(training)
    model.first.weight.requires_grad = False
    model.add_module("act", nn.ReLU(inplace=True))
    before = snapshot(model)
    trace(model)
    hard = harden(model, "layer")
    hard.train()
    run(hard, (X,))
    hard.eval()
    calibrate(hard, [X])
    run(hard.train(), (X,))
    assert equal(snapshot(model), before)


def test_parameters_are_the_same_objects_and_buffers_are_not() -> None:
    model = Tied()
    hard = harden(model)
    own, theirs = dict(hard.named_parameters()), dict(model.named_parameters())
    assert list(own) == list(theirs)
    assert all(own[name] is theirs[name] for name in own)
    assert not {id(buffer) for buffer in hard.buffers()} & {id(buffer) for buffer in model.buffers()}
    assert not {id(each) for each in hard.modules()} & {id(each) for each in model.modules()}
    model.plain.zero_()
    assert torch.equal(hard.plain, torch.full((4,), 0.5))


@pytest.mark.parametrize("times", [0, 1, 2])
def test_names_and_their_order_are_the_models_after_any_number_of_copies(times: int) -> None:
    model = Tied()
    graph_module = trace(model)
    for _ in range(times):
        graph_module = copy.deepcopy(graph_module)
    assert list(graph_module.state_dict()) == list(model.state_dict())
    names = dict(model.named_parameters(remove_duplicate=False))
    assert dict(graph_module.named_parameters(remove_duplicate=False)).keys() == names.keys()
    assert {name for name, _ in model.named_buffers()} <= {name for name, _ in graph_module.named_buffers()}
    assert graph_module.first.weight is graph_module.second.weight
    assert graph_module.norm is graph_module.again
    assert "passing" not in graph_module.state_dict()
    assert "inner.passing" not in graph_module.state_dict()
    assert bitwise_equal(run(graph_module, (X,)), run(model, (X,)))


def test_a_state_travels_both_ways() -> None:
    model, other = Tied(), Tied()
    graph_module = trace(model)
    graph_module.load_state_dict(other.state_dict())
    assert bitwise_equal(run(graph_module, (X,)), run(other, (X,)))
    other.load_state_dict(trace(Tied()).state_dict())


def test_a_copy_has_parameters_of_its_own() -> None:
    graph_module = trace(Tied())
    copied = copy.deepcopy(graph_module)
    assert not {id(each) for each in copied.parameters()} & {id(each) for each in graph_module.parameters()}


def test_a_module_that_was_traced_through_cannot_be_called_unprotected() -> None:
    hard = harden(nn.Sequential(nn.Sequential(nn.ReLU())))
    with pytest.raises(NotImplementedError):
        hard.get_submodule("0")(X)


class TestWhatIsHardToCopy:
    def test_a_lock_is_shared(self) -> None:
        model = module(lambda self, x: self.relu(x), relu=nn.ReLU(), lock=threading.Lock())
        assert owned_copy(model).lock is model.lock
        hardened_model = harden(model)
        set_bounds(hardened_model, INFINITE)
        assert bitwise_equal(run(hardened_model, (X,)), run(model, (X,)))

    def test_a_running_iterator_is_shared_and_not_consumed(self) -> None:
        model = module(lambda self, x: self.relu(x), relu=nn.ReLU(), rows=(row for row in range(3)))
        harden(model)
        assert list(model.rows) == [0, 1, 2]

    def test_a_tensor_with_history_is_copied_without_it(self) -> None:
        model = module(lambda self, x: self.relu(x), relu=nn.ReLU())
        model.last = nn.Linear(4, 4)(X)
        copied = owned_copy(model)
        assert torch.equal(copied.last, model.last)
        assert copied.last.grad_fn is None
        assert model.last.grad_fn is not None

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize(
        "normed",
        [
            lambda: nn.utils.weight_norm(nn.Linear(4, 4)),
            lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
            lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
            lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
            lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
        ],
    )
    def test_reparametrized_weights_stay_what_they_are(self, normed: Any, training: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            layer = normed()
        model = nn.Sequential(layer, nn.ReLU()).train(training)
        run(model, (X,))  # leaves tensors with history behind
        with torch.enable_grad():
            model(X)
        hard = hardened_like_first_run(model)
        assert [name for name in hard.state_dict() if "bound" not in name] == list(model.state_dict())
        assert all(own is theirs for own, theirs in zip(hard.parameters(), model.parameters(), strict=True))

    def test_a_parametrization_on_a_module_that_is_traced_through(self) -> None:
        model = module(lambda self, x: (x @ self.weight).relu(), weight=nn.Parameter(torch.randn(4, 4)))

        class Symmetric(nn.Module):
            def forward(self, weight: Tensor) -> Tensor:
                return weight.triu() + weight.triu(1).transpose(0, 1)

        parametrize.register_parametrization(model, "weight", Symmetric())
        hardened_like(model, X)


def hardened_like_first_run(model: nn.Module) -> nn.Module:
    """Spectral norms step their estimate at every run in training mode, so only the first one is compared."""
    hard = harden(model)
    set_bounds(hard, INFINITE)
    assert bitwise_equal(run(hard, (X,)), run(copy_with_history(model), (X,)))
    return hard


def copy_with_history(model: nn.Module) -> nn.Module:
    return owned_copy(model)


def test_buffers_are_what_they_were_in_every_way_to_change_them() -> None:
    layer = nn.BatchNorm1d(4)
    layer.register_buffer("expanded", torch.full((1,), torch.nan).expand(3))
    layer.register_buffer("sparse", torch.eye(3).to_sparse())
    layer.register_buffer("flags", torch.tensor([True, False]))
    layer.register_buffer("empty", torch.zeros(2, device="meta"))
    layer.register_buffer("cache", None)
    before = dict(layer._buffers)
    contents = copy.deepcopy(layer.state_dict())
    with buffers_kept(layer):
        layer(X)
        layer.running_mean.data.add_(1)
        layer.running_var = torch.full((4,), torch.nan)
        layer.flags.data.logical_not_()
        layer.cache = torch.ones(2)
    assert all(layer._buffers[name] is buffer for name, buffer in before.items())
    for name in contents.keys() & before.keys() - {"empty"}:
        buffer = layer.get_buffer(name)
        now, then = buffer.to_dense(), contents[name].to_dense()
        assert torch.equal(now.nan_to_num(), then.nan_to_num())
