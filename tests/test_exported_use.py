"""What is done with an exported graph: modes, casts, copies, states, bounds, files, compiled code, faults."""

import copy
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import module
from test_exported import IMAGES, ByShape, X, agree, cnn, exported, infinite, refusal
from torch import Tensor, nn

import fitact_fx
from fitact_fx import harden, inject, lower, set_bounds, verify
from fitact_fx.errors import RecipeError, TracingError
from fitact_fx.faults import BitFlip
from fitact_fx.learning import Learning
from fitact_fx.schemes.fitact import FitAct


class TestModesAndTypes:
    def test_training_mode_is_refused_both_ways(self) -> None:
        assert "call model.eval() first" in refusal(ByShape().train(), X)
        hard = infinite(ByShape(), X)
        with pytest.raises(TracingError, match="cannot change to training mode"):
            hard.train()
        assert not any(each.training for each in hard.modules())
        assert hard.eval() is hard

    @pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.double, lambda model: model.to(torch.bfloat16)])
    def test_another_type_is_refused_by_name_and_changes_nothing(self, cast: Callable[[nn.Module], Any]) -> None:
        hard = infinite(ByShape(), X)
        with pytest.raises(TracingError, match=r"exported for torch\.float32 on cpu, and cannot become torch\."):
            cast(hard)
        assert {each.dtype for each in hard.state_dict().values()} == {torch.float32}

    def test_the_same_type_and_device_are_no_change(self) -> None:
        model = ByShape()
        hard = infinite(model, X)
        assert hard.float().to("cpu").to(torch.float32) is hard
        assert hard.first.weight is model.first.weight

    def test_a_model_in_double_stays_in_double(self) -> None:
        model = ByShape().double()
        agree(model, infinite(model, X.double()), X.double())


class TestBuffers:
    def test_one_that_forward_changes_in_place_changes_in_the_graphs_own(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            if x.shape[-1] != 4:
                raise ValueError
            self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
            self.count += 1
            return F.relu(x - self.mean) * self.count

        model = module(forward, mean=torch.zeros(4), count=torch.tensor(0.0)).eval()
        hard = infinite(model, X)
        agree(model, hard, X)
        assert torch.equal(model.mean, torch.zeros(4))
        assert torch.equal(hard.mean, X.mean(0) * 0.75)
        assert hard.count == 2

    def test_one_that_was_loaded_is_read(self) -> None:
        graph = exported(ByShape(), X)
        graph.load_state_dict({**graph.state_dict(), "shift": torch.full((8,), 7.0)})
        model = ByShape().eval()
        model.load_state_dict(graph.state_dict())
        agree(model, graph, X)


class TestForward:
    @pytest.mark.parametrize("place", ["around", "inside"])
    def test_an_autocast_region_of_its_own_is_right_or_refused(self, place: str) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            if x.shape[-1] != 4:
                raise ValueError
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=place == "around"):
                return self.linear(F.relu(x))

        model = module(forward, linear=nn.Linear(4, 4)).eval()
        try:
            hard = infinite(model, X)
        except TracingError as error:
            assert "autocast" in str(error)  # noqa: PT017  either is right
            return
        agree(model, hard, X)

    def test_a_region_without_gradients_keeps_values_and_sites(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = F.relu(self.linear(x))
            return F.gelu(self.linear(y))

        model = module(forward, linear=nn.Linear(4, 4)).eval()
        hard = infinite(model, X)
        assert list(fitact_fx.bounds(hard)) == ["relu", "gelu"]
        agree(model, hard, X)

    def test_a_parameter_may_be_returned(self) -> None:
        model = module(lambda self, x: (F.relu(x), self.weight), weight=nn.Parameter(torch.ones(3)))
        assert infinite(model, X)(X)[1] is model.weight

    def test_a_constant_made_in_forward_is_new_each_time(self) -> None:
        model = module(lambda self, x: (F.relu(x), torch.ones(2)))
        hard = infinite(model, X)
        hard(X)[1].zero_()
        assert torch.equal(hard(X)[1], torch.ones(2))

    def test_random_numbers_stay_random(self) -> None:
        model = module(lambda self, x: F.relu(x) * torch.rand(4) + torch.rand_like(x)).eval()
        agree(model, infinite(model, X), X)

    def test_gradients_flow_to_inputs_and_parameters(self) -> None:
        model = ByShape().eval()
        given = X.clone().requires_grad_()
        infinite(model, given)(given).sum().backward()
        assert given.grad is not None
        assert model.first.weight.grad is not None
        assert model.first.weight.grad.abs().sum() > 0

    def test_inputs_need_not_be_contiguous(self) -> None:
        model = ByShape().eval()
        wide, tall = torch.randn(3, 8), torch.randn(4, 3)
        for example in (X, wide[:, ::2], tall.t()):
            hard = infinite(model, example)
            for given in (X, wide[:, ::2], tall.t(), X[:1].expand(3, 4)):
                agree(model, hard, given)


def test_tracing_leaves_the_model_and_every_generator_alone() -> None:
    model = nn.Sequential(cnn(), nn.Dropout(0.5)).eval()
    model.requires_grad_(False)
    before, modes = copy.deepcopy(model.state_dict()), [each.training for each in model.modules()]
    attributes = [sorted(vars(each)) for each in model.modules()]
    states = torch.get_rng_state(), random.getstate()
    infinite(model, IMAGES)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert modes == [each.training for each in model.modules()]
    assert attributes == [sorted(vars(each)) for each in model.modules()]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert torch.backends.mha.get_fastpath_enabled()


QUIET = """
import torch
from torch import nn
import fitact_fx
class M(nn.Module):
    def forward(self, x):
        return (x if x.shape[0] > 0 else -x).relu()
fitact_fx.harden(M().eval(), example_inputs=(torch.randn(2, 4),))
class N(nn.Module):
    def forward(self, x):
        return x.relu() if x.sum() > 0 else x
try:
    fitact_fx.harden(N().eval(), example_inputs=(torch.randn(2, 4),))
except fitact_fx.FitactError:
    pass
"""


def test_it_says_nothing_on_either_stream() -> None:
    ran = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


class TestWhatFollows:
    def test_a_copy_is_a_model_of_its_own(self) -> None:
        hard = infinite(ByShape(), X)
        twin = copy.deepcopy(hard)
        agree(hard, twin, X)
        assert list(twin.state_dict()) == list(hard.state_dict())
        assert twin.frontend == "export"
        with torch.no_grad():
            twin.first.weight.zero_()
        assert hard.first.weight.abs().sum() > 0
        with pytest.raises(TracingError):
            twin.train()

    def test_bounds_are_calibrated_and_learned(self) -> None:
        torch.manual_seed(0)
        data = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(4)]
        model = ByShape().eval()
        scheme = FitAct(learning=Learning(distortion=float("inf")))
        hard = harden(model, scheme=scheme, example_inputs=(X,), frontend="export")
        fitact_fx.calibrate(hard, data)
        (upper,) = (bound for _, bound in fitact_fx.bounds(hard).values())
        with torch.no_grad():
            seen = torch.cat([F.relu(model.first(inputs)) for inputs, _ in data]).amax(0, keepdim=True)
        torch.testing.assert_close(upper, seen)
        record = fitact_fx.post_train(hard, data, max_drop=0.5)
        assert record.steps > 0
        assert torch.isfinite(fitact_fx.bounds(hard)["act"][1]).all()

    def test_a_bound_holds(self) -> None:
        hard = harden(ByShape().eval(), "layer", "ranger", example_inputs=(X,), frontend="export")
        set_bounds(hard, {"act": (None, 0.5)})
        seen: list[Tensor] = []
        hard.get_submodule("act_bound").register_forward_hook(lambda *told: seen.append(told[2]))
        hard(X * 1e4)
        assert seen[0].max() == 0.5

    def test_lowered_it_gives_the_same(self) -> None:
        model = ByShape()
        hard = harden(model.eval(), example_inputs=(X,), frontend="export")
        fitact_fx.calibrate(hard, [X])
        compiled = lower(hard, (X,), backend="aot_eager")
        agree(hard, compiled, X)
        agree(hard, compiled, X[:1])

    def test_it_is_saved_and_loaded_with_example_inputs(self, tmp_path: Path) -> None:
        model = ByShape().eval()
        hard = harden(model, example_inputs=(X,), frontend="export")
        fitact_fx.calibrate(hard, [X])
        fitact_fx.save(hard, tmp_path / "bounds")
        with pytest.raises(RecipeError, match="give load the example_inputs that harden got"):
            fitact_fx.load(tmp_path / "bounds", model)
        loaded = fitact_fx.load(tmp_path / "bounds", model, (X,))
        assert loaded.frontend == "export"
        assert torch.equal(fitact_fx.bounds(loaded)["act"][1], fitact_fx.bounds(hard)["act"][1])
        agree(hard, loaded, X)

    def test_verify_finds_it_equal(self) -> None:
        model = ByShape()
        assert verify(model, infinite(model, X), X)

    def test_faults_are_injected_into_it(self) -> None:
        model = ByShape()
        hard = infinite(model, X)
        faulty = inject(hard, "act", BitFlip(count=1, bits=[30]), format="float32", example_inputs=(X,))
        with torch.no_grad():
            rows = (faulty(X) != model(X)).any(1)
        assert rows.sum() == 1
        agree(model, hard, X)
