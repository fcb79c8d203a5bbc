"""The partial front end: code that no graph can hold runs as it is, and what it calls is protected."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import INFINITE, bitwise_equal, module, run
from torch import Tensor, nn

import fitact_fx
from fitact_fx import find_sites, harden, lower, set_bounds, trace, verify
from fitact_fx.errors import RecipeError, TracingError, UnprotectedWarning
from fitact_fx.learning import Learning
from fitact_fx.schemes.fitact import FitAct
from fitact_fx.traced import TracedModule

X = torch.linspace(-3, 3, 8).reshape(2, 4) + 0.5  # so that X and -X take different branches

pytestmark = pytest.mark.filterwarnings("ignore::fitact_fx.UnprotectedWarning")


def by_value(self: nn.Module, x: Tensor) -> Tensor:
    """No graph holds this branch."""
    return self.body(x) if x.sum() > 0 else self.body(-x) * 2


def body() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.GELU())


def root() -> nn.Module:
    return module(by_value, body=body())


def child() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), module(by_value, body=body()), nn.Sigmoid())


def infinite(model: nn.Module, **options: Any) -> TracedModule:
    hard = harden(model, **options)
    set_bounds(hard, INFINITE)
    return hard


def like(model: nn.Module, *inputs: Any) -> TracedModule:
    """The hardened model, after checking that it does what the model does, bitwise and twice over."""
    hard = infinite(model)
    reference = copy.deepcopy(model)
    for _ in range(2):
        for given in (inputs, tuple(-each if isinstance(each, Tensor) else each for each in inputs)):
            assert bitwise_equal(run(reference, given), run(hard, given))
    return hard


def names(model: nn.Module) -> list[str]:
    return [site.name for site in find_sites(trace(model))]


class TestWhatBecomesAGraph:
    @pytest.mark.parametrize("make", [root, child])
    def test_it_does_what_the_model_does(self, make: Callable[[], nn.Module]) -> None:
        model = make()
        hard = like(model, X)
        assert hard.frontend == "partial"
        assert verify(model, hard, X)
        assert verify(model, hard, -X)

    def test_sites_are_called_as_their_modules_are(self) -> None:
        assert names(root()) == ["body.1", "body.3"]
        assert names(child()) == ["1", "2.body.1", "2.body.3", "3"]

    def test_names_are_those_of_the_model_without_its_branch(self) -> None:
        def plain(self: nn.Module, x: Tensor) -> Tensor:
            return self.body(x)

        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear, self.act = nn.Linear(4, 4), nn.ReLU()

            def forward(self, x: Tensor) -> Tensor:
                return F.gelu(self.act(self.linear(x)) + F.gelu(self.act(x)))

        parts = nn.Sequential(Block(), Block())
        assert names(module(by_value, body=parts)) == names(module(plain, body=parts))

    def test_parameters_and_buffers_keep_their_names_and_are_the_users(self) -> None:
        model = module(by_value, body=nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()), own=torch.ones(3))
        model.weight = nn.Parameter(torch.ones(2))
        graph = trace(model)
        assert list(graph.state_dict()) == list(model.state_dict())
        theirs = dict(model.named_parameters())
        assert [name for name, _ in graph.named_parameters()] == list(theirs)
        assert all(parameter is theirs[name] for name, parameter in graph.named_parameters())
        mine = dict(graph.named_buffers())
        assert all(mine[name] is not buffer for name, buffer in model.named_buffers())

    def test_a_bound_in_a_part_holds(self) -> None:
        hard = harden(root(), "layer", "ranger")
        set_bounds(hard, {"body.1": (None, 0.5), "body.3": (-0.25, 0.25)})
        assert hard(X * 1e4).abs().max() <= 0.5 * (1 + 2**-9)
        assert hard(-X * 1e4).abs().max() > 0

    def test_a_bound_in_a_part_holds_at_every_value(self) -> None:
        hard = harden(module(by_value, body=nn.Sequential(nn.Linear(4, 4), nn.ReLU())), "layer", "ranger")
        set_bounds(hard, {"body.1": (None, 0.5)})
        assert hard(X * 1e4).max() == 0.5

    def test_shared_children_are_bounded_once(self) -> None:
        shared = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self: nn.Module, x: Tensor) -> Tensor:
            return self.one(x) if x.sum() > 0 else self.two(self.one(x))

        model = module(forward, one=shared, two=shared)
        hard = like(model, X)
        assert list(fitact_fx.bounds(hard)) == ["one.1"]
        assert hard.one[1] is hard.two[1] if isinstance(hard.one, nn.Sequential) else hard.one is hard.two

    def test_a_model_with_nothing_to_trace_says_where_and_what_helps(self) -> None:
        model = module(lambda self, x: F.relu(x) if x.sum() > 0 else x)
        with pytest.raises(TracingError) as refused:
            trace(model)
        assert "test_partial.py:" in str(refused.value)
        assert "if x.sum() > 0" in str(refused.value)
        assert "example_inputs" in str(refused.value)

    def test_optional_arguments_of_children_are_the_callers(self) -> None:
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear, self.act = nn.Linear(4, 4), nn.ReLU()

            def forward(self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
                y = self.act(self.linear(x)) * scale
                return y if mask is None else y * mask

        def forward(self: nn.Module, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return self.body(x)
            return self.body(x, 3.0, mask=x > -1)

        like(module(forward, body=Scaled()), X)


class TestChildren:
    def test_a_child_may_be_none_and_in_a_list_or_a_dict(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x) if x.sum() > 0 else layer(-x)
            return self.table["a"](x) if self.nothing is None else x

        layers = nn.ModuleList([body(), body()])
        model = module(forward, layers=layers, table=nn.ModuleDict({"a": body()}), nothing=None)
        hard = like(model, X)
        assert {"layers.0.1", "layers.1.3", "table.a.1"} <= set(fitact_fx.bounds(hard))

    def test_in_place_activations_write_where_the_model_writes(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Any:
            y = x * 1
            z = self.act(y) if x.sum() > 0 else self.act(y[:, :2])
            self.block(y)
            return y, z, x

        block = nn.Sequential(nn.ReLU(inplace=True), nn.ELU(inplace=True))
        like(module(forward, act=nn.LeakyReLU(0.5, inplace=True), block=block), X)

    def test_hooks_on_inner_modules_still_run(self) -> None:
        seen: list[str] = []
        model = root()
        model.body[0].register_forward_hook(lambda *told: seen.append("leaf"))
        model.body.register_forward_hook(lambda *told: seen.append("container"))
        hard = infinite(model)
        seen.clear()
        got = run(hard, (X,))
        assert seen == ["leaf", "container"]
        assert bitwise_equal(got, run(model, (X,)))

    def test_a_hook_on_code_that_is_not_seen_still_runs_and_changes_its_result(self) -> None:
        model = child()
        model[2].register_forward_hook(lambda module, args, output: output + 1)
        like(model, X)


class TestModes:
    def test_both_modes_are_the_models(self) -> None:
        model = module(by_value, body=nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5)))
        like(model, X)
        hard = infinite(model.eval())
        assert verify(model, hard, X)
        assert not any(each.training for each in hard.modules())
        assert all(each.training for each in hard.train().modules())

    def test_a_train_of_the_roots_own_is_respected(self) -> None:
        class Frozen(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5))

            forward = by_value

            def train(self, mode: bool = True) -> "Frozen":
                super().train(mode)
                self.body.eval()
                return self

        model = Frozen().train()
        hard = like(model, X)
        for mode in (True, False, True):
            model.train(mode), hard.train(mode)
            assert bitwise_equal(run(model, (X,)), run(hard, (X,)))
            assert not hard.body.training

    def test_a_flag_of_the_roots_own_mode_is_read_when_it_runs(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            y = self.body(x) if x.sum() > 0 else x
            return y * 2 if self.training else y

        model = module(forward, body=body())
        hard = like(model, X)
        model.eval(), hard.eval()
        assert bitwise_equal(run(model, (X,)), run(hard, (X,)))


class TestWhatFollows:
    @pytest.mark.parametrize("make", [root, child])
    def test_a_copy_is_a_model_of_its_own(self, make: Callable[[], nn.Module]) -> None:
        hard = infinite(make())
        twin = copy.deepcopy(hard)
        assert list(twin.state_dict()) == list(hard.state_dict())
        expected = run(hard, (X,))
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert bitwise_equal(run(hard, (X,)), expected)
        assert not bitwise_equal(run(twin, (X,)), expected)
        set_bounds(twin, {"*": (0.0, 0.0)})
        assert bitwise_equal(run(hard, (X,)), expected)

    @pytest.mark.parametrize("make", [root, child])
    def test_a_state_goes_there_and_back(self, make: Callable[[], nn.Module]) -> None:
        model, hard = make(), infinite(make())
        hard.load_state_dict({**hard.state_dict(), **model.state_dict()})
        assert bitwise_equal(run(hard, (X,)), run(model, (X,)))
        fresh = infinite(make())
        fresh.load_state_dict(hard.state_dict())
        assert bitwise_equal(run(fresh, (X,)), run(model, (X,)))

    @pytest.mark.parametrize("make", [root, child])
    def test_it_is_cast_and_the_model_is_not(self, make: Callable[[], nn.Module]) -> None:
        model = make()
        hard = infinite(model).to(torch.float64)
        got = run(hard, (X.double(),))
        assert {each.dtype for each in model.parameters()} == {torch.float32}
        assert bitwise_equal(got, run(copy.deepcopy(model).double(), (X.double(),)))

    @pytest.mark.parametrize("make", [root, child])
    def test_bounds_are_calibrated_learned_saved_and_lowered(
        self, make: Callable[[], nn.Module], tmp_path: Path
    ) -> None:
        torch.manual_seed(0)
        model = make().eval()
        data = [torch.randn(16, 4) for _ in range(4)]
        hard = harden(model, "layer", FitAct(learning=Learning(distortion=float("inf"))))
        fitact_fx.calibrate(hard, data)
        assert fitact_fx.post_train(hard, data, max_drop=0.5).steps > 0
        fitact_fx.save(hard, tmp_path / "bounds")
        loaded = fitact_fx.load(tmp_path / "bounds", model)
        assert loaded.frontend == "partial"
        assert bitwise_equal(run(loaded, (X,)), run(hard, (X,)))
        torch.testing.assert_close(run(lower(hard, (X,), "aot_eager"), (X,)), run(hard, (X,)))

    def test_what_is_saved_does_not_fit_another_model(self, tmp_path: Path) -> None:
        hard = infinite(root())
        fitact_fx.save(hard, tmp_path / "bounds")
        with pytest.raises(RecipeError, match="does not fit this model"):
            fitact_fx.load(tmp_path / "bounds", child())

    @pytest.mark.filterwarnings("default::fitact_fx.UnprotectedWarning")
    def test_what_was_not_seen_is_listed_and_warned_of(self) -> None:
        hidden = trace(child()).unseen
        assert list(hidden) == ["2"]
        assert re.search(r"test_partial.py:\d+, in by_value: .*if x.sum\(\) > 0", hidden["2"])
        assert list(trace(root()).unseen) == [""]
        with pytest.warns(UnprotectedWarning, match=r"(?s)2: its code could not be seen: cannot trace"):
            harden(child())
