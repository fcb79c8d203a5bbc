"""Training modes: `train()` and `eval()` of the graph do what they do on the model, or say that they cannot."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import bitwise_equal, hardened_like, module, run
from torch import Tensor, nn

from fitact_fx.errors import TracingError
from fitact_fx.hardening import harden
from fitact_fx.tracing import trace

X = torch.linspace(-3, 3, 32).reshape(8, 4)


def same_in_both_modes(model: nn.Module) -> nn.Module:
    """The hardened model, which in each mode gives what the model gives with the same random numbers."""
    hardened_like(model, X)
    hard, reference = harden(model), copy.deepcopy(model)
    for mode in (True, False, True):
        assert hard.train(mode) is hard
        assert bitwise_equal(run(hard, (X,)), run(reference.train(mode), (X,)))
    return hard


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: F.dropout(F.relu(x), training=self.training),
        lambda self, x: F.dropout(F.relu(x), 0.5, self.training),
        lambda self, x: F.dropout(F.relu(x), p=0.5 if self.training else 0.0),
        lambda self, x: F.relu(x) * (2 if self.training else 3.5),
        lambda self, x: F.relu(x)[: 3 if self.training else None],
        lambda self, x: self.drop(self.norm(F.relu(x))),
        lambda self, x: F.batch_norm(F.relu(x), self.mean, self.var, training=self.training),
        lambda self, x: F.relu(x) + torch.ones(4) * 0.5,
        lambda self, x: (F.relu(x), self.training),
    ],
)
def test_what_depends_on_the_mode_follows_it(training: bool, forward: Callable[..., Any]) -> None:
    parts = {"norm": nn.BatchNorm1d(4), "drop": nn.Dropout(0.5), "mean": torch.zeros(4), "var": torch.ones(4)}
    same_in_both_modes(module(forward, **parts).train(training))


def test_a_hardened_copy_follows_the_mode_too() -> None:
    model = module(lambda self, x: F.dropout(F.relu(x), training=self.training))
    hard = copy.deepcopy(harden(model)).eval()
    assert bitwise_equal(run(hard, (X,)), run(model.eval(), (X,)))


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        if self.training:
            return x + torch.rand_like(x)
        return x * 2


class TestABranchOnTheMode:
    @pytest.mark.parametrize("training", [True, False])
    def test_the_graph_is_the_models_in_its_own_mode(self, training: bool) -> None:
        hard = hardened_like(Branch().train(training), X)
        assert hard.train(training).training == training

    def test_the_other_mode_is_refused_with_the_line(self) -> None:
        hard = harden(Branch().eval())
        with pytest.raises(TracingError) as refused:
            hard.train()
        message = str(refused.value)
        assert message.startswith(
            "this graph was traced in evaluation mode and cannot change to training mode: "
            "the model's code takes another way there (test_modes.py:"
        )
        assert "return x" in message
        assert message.endswith("call model.train() on the original and trace or harden it again")
        with pytest.raises(TracingError, match=r"traced in training mode .*\n  call model.eval\(\) on the original"):
            harden(Branch()).eval()

    def test_a_branch_that_changes_only_what_is_returned_names_the_line_before(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Any:
            y = F.relu(x)
            return (y, x) if self.training else y

        with pytest.raises(TracingError, match=r"\(in what forward returns, after test_modes.py:\d+, in forward: y = "):
            harden(module(forward).eval()).train()

    def test_a_copy_refuses_it_too(self) -> None:
        with pytest.raises(TracingError, match="cannot change to training mode"):
            copy.deepcopy(harden(Branch().eval())).train()

    def test_a_mode_that_cannot_be_traced_is_refused_with_its_reason(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            if self.training and x.sum() > 0:
                x = x + 1
            return F.relu(x)

        hard = hardened_like(module(forward).eval(), X)
        with pytest.raises(TracingError, match=r"cannot trace the model itself \(Small\) \(test_modes.py:"):
            hard.train()

    def test_a_submodule_in_the_other_mode_takes_its_own_branch(self) -> None:
        model = nn.Sequential(Branch())
        model[0].eval()
        assert model.training
        hard = hardened_like(model, X)
        for change, name in ((hard.train, "training"), (hard.eval, "evaluation")):
            with pytest.raises(TracingError, match=f"traced in a mixture of modes and cannot change to {name} mode"):
                change()


class FrozenNorm(nn.Module):
    """As in many repositories: the norm stays in evaluation mode whatever the rest does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def train(self, mode: bool = True) -> "FrozenNorm":
        super().train(mode)
        self.inner[1].eval()
        self.inner[0].weight.requires_grad = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(self.inner(x)), training=self.training)


class TestMixedModes:
    def test_each_module_keeps_its_own_mode(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU()).train()
        model[0].eval()
        hard = harden(model)
        assert [hard.get_submodule(name).training for name in "012"] == [False, True, True]
        assert [each.training for each in model] == [False, True, True]

    def test_a_flag_is_read_from_the_module_whose_code_reads_it(self) -> None:
        model = nn.Sequential(module(lambda self, x: F.dropout(F.relu(x), training=self.training)))
        model[0].eval()
        hard = harden(model)
        assert bitwise_equal(run(hard, (X,)), run(model, (X,)))
        hard.train()
        assert bitwise_equal(run(hard, (X,)), run(copy.deepcopy(model).train(), (X,)))
        hard.get_submodule("0").eval()
        assert bitwise_equal(run(hard, (X,)), run(model, (X,)))

    def test_a_flag_of_another_module_is_not_taken_for_the_callers(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            return F.dropout(F.relu(x), training=self.child.training)

        model = module(forward, child=nn.Sequential())
        model.child.eval()
        hardened_like(model, X)

    def test_a_train_of_the_models_own_is_honoured(self) -> None:
        model = FrozenNorm().eval()
        trainable = [parameter.requires_grad for parameter in model.parameters()]
        hard = same_in_both_modes(model)
        hard.train()
        assert not hard.get_submodule("inner.1").training
        assert hard.training
        assert [parameter.requires_grad for parameter in model.parameters()] == trainable
        assert not any(each.training for each in model.modules())

    def test_tracing_leaves_modes_alone(self) -> None:
        model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.BatchNorm1d(4))
        model[0].eval()
        before = [each.training for each in model.modules()]
        graph_module = trace(model)
        assert [each.training for each in model.modules()] == before
        graph_module.eval()
        assert [each.training for each in model.modules()] == before


def test_the_mode_of_a_traced_graph_can_be_traced_again() -> None:
    model = module(lambda self, x: F.dropout(F.relu(x), training=self.training))
    again = trace(trace(model))
    for mode in (True, False):
        assert bitwise_equal(run(again.train(mode), (X,)), run(model.train(mode), (X,)))
