"""The export front end: torch.export's graph, under the model's own names, signature and sites."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import INFINITE, module, run
from torch import Tensor, nn

import fitact_fx
from fitact_fx import find_sites, harden, set_bounds, trace
from fitact_fx.errors import RecipeError, SiteError, TracingError
from fitact_fx.traced import TracedModule

X = torch.linspace(-3, 3, 8).reshape(2, 4)
IMAGES = torch.linspace(-2, 2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
TOKENS = torch.arange(12).reshape(2, 6) % 5


def exported(model: nn.Module, *inputs: Any) -> TracedModule:
    return trace(model.eval(), inputs, frontend="export")


def infinite(model: nn.Module, *inputs: Any, **options: Any) -> TracedModule:
    """The exported model, hardened, with bounds that let everything pass."""
    hard = harden(model.eval(), example_inputs=inputs, frontend="export", **options)
    set_bounds(hard, INFINITE)
    return hard


def refusal(model: nn.Module, *inputs: Any) -> str:
    with pytest.raises(TracingError) as refused:
        trace(model, inputs, frontend="export")
    return str(refused.value)


def agree(model: nn.Module, graph: nn.Module, *inputs: Any) -> None:
    """Twice, since the first run may leave something behind."""
    reference = copy.deepcopy(model)
    for _ in range(2):
        expected, got = run(reference, inputs), run(graph, inputs)
        assert len(expected) == len(got)
        for one, other in zip(expected, got, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6, equal_nan=True)


class ByShape(nn.Module):
    """Stand-ins cannot take this branch; torch.export can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)
        self.register_buffer("shift", torch.full((8,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 4:
            raise ValueError("four features")
        return self.last(self.act(self.first(x)) + self.shift)


class OwnForward(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's own name
        return F.relu(input) + 1


class Spellings(nn.Module):
    """The same activation in every spelling, and one module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act, self.inner = nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.GELU())
        self.inplace = nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.linear(x))
        x = self.act(self.inner(x) - 0.5)
        x = self.inplace(x - 1)
        x = F.relu(x) + torch.relu(x - 0.1) + x.relu() + F.relu(x * 2, inplace=True) + (x * 3).relu_()
        x = F.gelu(x) + F.silu(x) + torch.tanh(x) + x.sigmoid() + F.hardtanh(x) + F.relu6(x) + F.softplus(x)
        x = F.elu(x) + F.selu(x) + F.celu(x) + F.mish(x) + F.hardswish(x) + F.hardsigmoid(x) + F.logsigmoid(x)
        return F.softmax(x.clamp(min=0) + F.log_softmax(x, -1), -1)


def cnn() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.Softmax(-1)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), block, nn.MaxPool2d(2), nn.SiLU(), *head).eval()


class TestWhichFrontEnd:
    def test_what_stand_ins_can_follow_is_symbolic_even_with_example_inputs(self) -> None:
        assert trace(Spellings().eval(), (X,)).frontend == "symbolic"

    def test_what_they_cannot_is_exported_with_example_inputs_and_partial_without(self) -> None:
        assert trace(ByShape().eval(), (X,)).frontend == "export"
        assert trace(ByShape().eval(), X).frontend == "export"
        assert trace(ByShape().eval()).frontend == "partial"

    def test_what_cannot_be_exported_is_traced_in_part(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum() > 0 else self.inner(-x)

        model = module(forward, inner=nn.Sequential(nn.Linear(4, 4), nn.ReLU())).eval()
        assert trace(model, (X,)).frontend == "partial"

    @pytest.mark.parametrize("frontend", ["symbolic", "export", "partial"])
    def test_one_can_be_forced(self, frontend: str) -> None:
        graph_module = trace(Spellings().eval(), (X,), frontend=frontend)
        assert graph_module.frontend == frontend
        assert harden(Spellings().eval(), example_inputs=(X,), frontend=frontend).frontend == frontend

    def test_an_unknown_one_is_named_with_those_there_are(self) -> None:
        with pytest.raises(RecipeError, match="unknown front end 'dynamo'; choose one of export, partial, symbolic"):
            trace(Spellings(), (X,), frontend="dynamo")

    def test_export_without_inputs_asks_for_them(self) -> None:
        with pytest.raises(TracingError, match="give example_inputs"):
            trace(Spellings().eval(), frontend="export")


class TestNames:
    @pytest.mark.parametrize(("make", "inputs"), [(Spellings, X), (cnn, IMAGES)])
    def test_sites_are_called_as_in_a_symbolic_graph(self, make: Callable[[], nn.Module], inputs: Tensor) -> None:
        model = make().eval()
        of = [[(site.name, site.kind, site.minimum) for site in find_sites(trace(model, (inputs,), frontend=each))]
              for each in ("symbolic", "export")]  # fmt: skip
        assert of[0] == of[1]

    @pytest.mark.parametrize(
        "call",
        [
            lambda self, x: F.relu6(x),
            lambda self, x: self.relu6(self.relu6(x) * 2),
            lambda self, x: self.sign(x),
            lambda self, x: self.min(x),
            lambda self, x: self.shrink(x),
            lambda self, x: self.own(x),
            lambda self, x: self.relu6(x) + self.other(x),
            lambda self, x: torch.special.expit(x),
            lambda self, x: torch.special.softmax(x, -1),
            lambda self, x: torch.special.log_softmax(x, -1),
            lambda self, x: F.softsign(x),
            lambda self, x: F.softmin(x, -1),
            lambda self, x: F.tanhshrink(x),
            lambda self, x: F.logsigmoid(x),
            lambda self, x: F.glu(x),
            lambda self, x: torch.maximum(x, torch.tensor(0.0)),
            lambda self, x: torch.maximum(x, torch.zeros_like(x)),
            lambda self, x: torch.clamp_min(x, 0),
            lambda self, x: (x * 2).clamp_(min=0),
            lambda self, x: F.threshold(x, 0.1, 0.0),
        ],
    )
    def test_rare_spellings_too(self, call: Callable[..., Tensor]) -> None:
        parts = {"relu6": nn.ReLU6(inplace=True), "sign": nn.Softsign(), "min": nn.Softmin(-1), "own": OwnForward()}
        model = module(call, shrink=nn.Tanhshrink(), other=parts["relu6"], **parts).eval()
        of = [[(site.name, site.kind, site.minimum) for site in find_sites(trace(model, (X,), frontend=each))]
              for each in ("symbolic", "export")]  # fmt: skip
        assert of[0] == of[1]

    @pytest.mark.parametrize("place", ["linear", "norm", "residual", "logits"])
    def test_sites_of_other_places_too(self, place: str) -> None:
        model = cnn()
        of = [[site.name for site in find_sites(trace(model, (IMAGES,), frontend=each), place)]
              for each in ("symbolic", "export")]  # fmt: skip
        assert of[0] == of[1]

    def test_a_site_tells_the_users_line_and_module(self) -> None:
        one, other = (find_sites(trace(Spellings().eval(), (X,), frontend=each)) for each in ("symbolic", "export"))
        assert [site.source for site in other] == [site.source for site in one]
        assert [site.module_path for site in other] == [site.module_path for site in one]

    def test_parameters_are_the_users_and_buffers_are_copies(self) -> None:
        model = cnn()
        graph = exported(model, IMAGES)
        assert list(graph.state_dict()) == list(model.state_dict())
        theirs = dict(model.named_parameters())
        assert all(parameter is theirs[name] for name, parameter in graph.named_parameters())
        own = dict(graph.named_buffers())
        assert all(own[name] is not buffer and torch.equal(own[name], buffer) for name, buffer in model.named_buffers())

    def test_tied_parameters_stay_tied(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        graph = exported(model, X)
        assert list(graph.state_dict()) == list(model.state_dict())
        assert graph.get_parameter("2.weight") is model[0].weight
        agree(model, graph, X)

    def test_a_state_goes_there_and_back(self) -> None:
        model, other = ByShape(), ByShape()
        hard = infinite(model, X)
        hard.load_state_dict({**hard.state_dict(), **other.state_dict()})
        agree(other, hard, X)
        fresh = infinite(ByShape(), X)
        fresh.load_state_dict(hard.state_dict())
        agree(other, fresh, X)


class TestShapes:
    @pytest.mark.parametrize("given", [1, 2, 5])
    def test_the_batch_size_is_free(self, given: int) -> None:
        model = cnn()
        hard = infinite(model, torch.randn(given, 3, 8, 8))
        for samples in (1, 2, 3, 7):
            agree(model, hard, torch.randn(samples, 3, 8, 8))

    @pytest.mark.parametrize("granularity", ["channel", "layer"])
    def test_the_length_of_tokens_is_free(self, granularity: str) -> None:
        model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.GELU())
        hard = harden(model.eval(), granularity, example_inputs=(TOKENS,), frontend="export")
        fitact_fx.calibrate(hard, [TOKENS, TOKENS[:, :3], TOKENS[:1]])
        for tokens in (TOKENS[:, :1], TOKENS[:1, :4], TOKENS):
            agree(model, hard, tokens)

    def test_neuron_bounds_refuse_another_length(self) -> None:
        model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.GELU())
        hard = harden(model.eval(), "neuron", example_inputs=(TOKENS,), frontend="export")
        fitact_fx.calibrate(hard, [TOKENS])
        with pytest.raises(SiteError, match="neuron bounds were calibrated for"):
            hard(TOKENS[:, :3])

    def test_a_size_that_is_not_free_is_named(self) -> None:
        hard = infinite(cnn(), IMAGES)
        with pytest.raises(TracingError, match=r"it needs .*x|it needs .*input") as refused:
            hard(torch.randn(2, 3, 10, 10))
        assert "8" in str(refused.value)
        assert "trace or harden again with example_inputs of such shapes" in str(refused.value)

    def test_another_number_of_dimensions_or_type_is_a_tracing_error(self) -> None:
        hard = infinite(ByShape(), X)
        for other in (torch.randn(2, 2, 4), torch.randn(2, 5), X.double()):
            with pytest.raises(TracingError):
                hard(other)

    def test_a_branch_on_the_type_of_an_input_is_checked_when_the_graph_runs(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            return F.relu(x) if x.dtype == torch.float32 else F.relu(x) * 2

        graph = exported(module(forward), X)
        with pytest.raises(TracingError, match="float64"):
            graph(X.double())

    @pytest.mark.parametrize("row", [0, 1])
    def test_a_branch_on_a_single_sample_is_kept_or_refused(self, row: int) -> None:
        """Whatever the examples are: in one of these rows nothing shows."""

        def forward(self: nn.Module, x: Tensor) -> Tensor:
            return F.relu(x) if x.shape[0] > 1 else F.relu(x) * 2

        model = module(forward).eval()
        try:
            got = exported(model, X[[row, 1 - row]])(X[1:])
        except TracingError:
            return
        assert torch.equal(got, model(X[1:]))
