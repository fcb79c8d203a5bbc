"""What people give by mistake or against the grain: the right result, or an error that says what to do."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import INFINITE, bitwise_equal, module, run
from torch import Tensor, nn

from fitact_fx import FitactError, bounds, calibrate, find_sites, harden, lower, set_bounds, trace, verify
from fitact_fx.errors import CalibrationError, SiteError, TracingError

X = torch.linspace(-3, 3, 8).reshape(2, 4)


def by_value(self: nn.Module, x: Tensor) -> Tensor:
    return F.relu(x) if x.sum() > 0 else x


def by_shape(self: nn.Module, x: Tensor) -> Tensor:
    return F.relu(x) if x.shape[-1] == 4 else x


def plain(self: nn.Module, x: Tensor) -> Tensor:
    return F.relu(x)


def refused(call: Callable[[], Any]) -> str:
    """The error, which is the library's own and has a remedy on a line of its own."""
    with pytest.raises(FitactError) as error:
        call()
    assert "\n  " in str(error.value)
    return str(error.value)


class TestExampleInputs:
    @pytest.mark.parametrize("given", [[X], {"x": X}, "x", 3, X.numpy()])
    @pytest.mark.parametrize("frontend", [None, "symbolic", "export", "partial"])
    def test_what_is_no_tuple_is_refused_with_its_type(self, given: Any, frontend: str | None) -> None:
        told = refused(lambda: trace(module(plain).eval(), given, frontend=frontend))
        assert f"example_inputs is a {type(given).__name__};\n  give a tuple of positional inputs" in told

    @pytest.mark.parametrize("given", [(), (X, X), (X, X, X)])
    def test_another_number_of_them_is_refused_where_they_are_needed(self, given: tuple[Any, ...]) -> None:
        told = refused(lambda: harden(module(by_shape).eval(), example_inputs=given, frontend="export"))
        assert "example inputs" in told
        assert "argument" in told

    @pytest.mark.parametrize("given", [("x",), (None,), (3,), (X.long(),), (torch.zeros(0, 4),), (torch.tensor(1.0),)])
    def test_another_type_of_them_is_an_error_of_the_librarys_or_right(self, given: tuple[Any, ...]) -> None:
        model = module(lambda self, x: self.linear(x).relu() if x.shape[1] == 4 else x, linear=nn.Linear(4, 4)).eval()
        try:
            got = trace(model, given, frontend="export")(X)
        except FitactError:
            return
        torch.testing.assert_close(got, model(X))

    def test_one_tensor_stands_for_a_tuple_of_one(self) -> None:
        model = module(by_shape).eval()
        hard = harden(model, example_inputs=X)  # type: ignore[arg-type]
        assert hard.frontend == "export"

    def test_they_are_not_changed_by_a_model_that_overwrites_them(self) -> None:
        given = X.clone()
        model = module(lambda self, x: x.relu_() if x.shape[-1] == 4 else x).eval()
        hard = harden(model, example_inputs=(given,))
        assert torch.equal(given, X)
        set_bounds(hard, INFINITE)
        assert bitwise_equal(run(hard, (X,)), run(model, (X,)))

    def test_nan_and_infinity_in_them_are_no_matter(self) -> None:
        given = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1.0]] * 2)
        model = module(by_shape).eval()
        hard = harden(model, example_inputs=(given,))
        set_bounds(hard, INFINITE)
        assert bitwise_equal(run(hard, (X,)), run(model, (X,)))

    def test_the_same_tensor_twice_is_two_inputs(self) -> None:
        model = module(lambda self, x, y: F.relu(x) * y if x.shape == y.shape else x).eval()
        graph = trace(model, (X, X))
        assert graph.frontend == "export"
        assert torch.equal(graph(X, X + 1), model(X, X + 1))

    def test_views_of_one_tensor_are_two_inputs(self) -> None:
        model = module(lambda self, x, y: F.relu(x) * y if x.shape == y.shape else x).eval()
        graph = trace(model, (X[:, :2], X[:, 2:]))
        assert torch.equal(graph(X[:, 2:], X[:, :2] * 3), model(X[:, 2:], X[:, :2] * 3))


class TestControlFlow:
    def test_without_example_inputs_they_are_the_remedy(self) -> None:
        told = refused(lambda: harden(module(by_value)))
        assert "test_bad_input.py:" in told
        assert "in by_value: return F.relu(x) if x.sum() > 0 else x" in told
        assert "give example_inputs" in told

    def test_with_them_the_error_has_both_reasons(self) -> None:
        told = refused(lambda: harden(module(by_value).eval(), example_inputs=(X,)))
        assert "in by_value: return F.relu(x) if x.sum() > 0 else x" in told
        assert "exported: torch.export cannot export this model" in told

    def test_an_error_of_the_models_own_is_told(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            if x.shape[-1] == 4:
                raise KeyError("no such thing")
            return F.relu(x)

        assert "no such thing" in refused(lambda: harden(module(forward).eval(), example_inputs=(X,)))

    def test_other_sizes_under_neuron_bounds_name_site_line_and_remedy(self) -> None:
        hard = harden(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval(), "neuron")
        calibrate(hard, [torch.randn(2, 1, 8, 8)])
        told = refused(lambda: hard(torch.randn(2, 1, 9, 9)))
        assert told.startswith("site 1 (")
        assert 'granularity="channel"' in told
        with pytest.raises(SiteError, match="neuron bounds were calibrated for"):
            calibrate(hard, [torch.randn(2, 1, 8, 8), torch.randn(2, 1, 9, 9)])


class TestBuffersChangedInForward:
    def counting(self) -> nn.Module:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            self.count = self.count + 1
            return F.relu(x) * self.count

        return module(forward, count=torch.tensor(0.0)).eval()

    def test_replacing_one_is_refused_by_name_without_example_inputs(self) -> None:
        assert "'count'" in refused(lambda: harden(self.counting()))

    def test_with_example_inputs_it_is_right_or_refused_and_the_models_own_stays(self) -> None:
        model = self.counting()
        try:
            hard = harden(model, example_inputs=(X,))
        except FitactError as error:
            assert "count" in str(error)  # noqa: PT017  either is right
        else:
            set_bounds(hard, INFINITE)
            for times in (1, 2, 3):
                assert torch.equal(run(hard, (X,))[0], F.relu(X) * times)
        assert model.count == 0


class TestDevicesAndTypes:
    def test_a_model_on_meta_is_hardened_and_cannot_be_calibrated(self) -> None:
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
        hard = harden(model, "layer")
        assert [site.name for site in find_sites(trace(model))] == ["1"]
        told = refused(lambda: calibrate(hard, [torch.empty(2, 4, device="meta")]))
        assert "meta" in told
        assert bounds(hard) == {"1": (None, None)}

    def test_a_model_on_meta_is_calibrated_once_it_has_values(self) -> None:
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
        hard = harden(model, "layer").to_empty(device="cpu")
        hard.load_state_dict({**hard.state_dict(), **nn.Sequential(nn.Linear(4, 4)).state_dict()})
        calibrate(hard, [X])
        assert bounds(hard)["1"][1] is not None

    def test_a_model_on_meta_is_exported_or_refused(self) -> None:
        with torch.device("meta"):
            model = module(by_shape).eval()
        try:
            hard = harden(model, example_inputs=(X.to("meta"),))
        except FitactError:
            return
        assert list(bounds(hard)) == ["relu"]

    def test_data_on_another_device_than_the_model_is_an_error_that_leaves_the_bounds(self) -> None:
        hard = harden(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), "layer")
        with pytest.raises((FitactError, RuntimeError)):
            calibrate(hard, [torch.empty(2, 4, device="meta")])
        assert bounds(hard) == {"1": (None, None)}

    def test_sparse_parameters_are_the_models(self) -> None:
        weight = nn.Parameter(torch.eye(4).to_sparse())
        model = module(lambda self, x: F.relu(torch.sparse.mm(self.weight, x.t())), weight=weight).eval()
        hard = harden(model, "layer")
        calibrate(hard, [X])
        assert verify(model, hard, X)

    def test_a_sparse_activation_is_bounded_or_refused_by_site(self) -> None:
        model = module(lambda self, x: torch.relu(x.to_sparse())).eval()
        hard = harden(model, "layer")
        try:
            calibrate(hard, [X])
        except FitactError as error:
            assert "relu" in str(error)  # noqa: PT017  either is right
            assert "sparse" in str(error)  # noqa: PT017
            return
        with torch.no_grad():
            assert torch.equal(hard(X).to_dense(), F.relu(X))

    @pytest.mark.filterwarnings("ignore:.*quantiz.*")
    def test_a_quantised_activation_is_bounded_or_refused_by_site(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            return torch.relu(torch.quantize_per_tensor(x, 0.1, 10, torch.quint8)).dequantize()

        model = module(forward).eval()
        hard = harden(model, "layer")
        try:
            calibrate(hard, [X])
        except FitactError as error:
            assert "relu" in str(error)  # noqa: PT017  either is right
            return
        assert verify(model, hard, X)
        assert bounds(hard)["relu"][1] is not None

    def test_whole_numbers_pass_and_complex_ones_until_they_should_be_bounded(self) -> None:
        model = module(lambda self, x, index: (F.relu(x), index.clamp(min=0), torch.tanh(torch.complex(x, x)))).eval()
        index = torch.tensor([-1, 2])
        hard = harden(model, "layer")
        set_bounds(hard, {"relu": (-0.5, 0.5), "clamp": (-0.5, 0.5)})
        got = run(hard, (X, index))
        assert torch.equal(got[1], torch.tensor([0, 2]))
        assert got[2].is_complex()
        set_bounds(hard, {"tanh": (-0.5, 0.5)})
        with pytest.raises(FitactError, match="its value is a complex tensor"):
            run(hard, (X, index))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("frontend", [None, "symbolic", "export", "partial"])
class TestCompiledAndScripted:
    def test_a_compiled_model(self, frontend: str | None) -> None:
        for model in (torch.compile(nn.ReLU()), nn.Sequential(torch.compile(nn.ReLU()))):
            told = refused(lambda model=model: harden(model.eval(), example_inputs=(X,), frontend=frontend))  # type: ignore[misc]
            assert "compiled already;\n  pass the original, and compile the result" in told

    def test_a_lowered_one(self, frontend: str | None) -> None:
        hard = harden(nn.Sequential(nn.ReLU()), "layer", data=[X], scheme="ranger")
        lowered = lower(hard, (X,), backend="eager")
        refused(lambda: harden(lowered, example_inputs=(X,), frontend=frontend))

    def test_a_scripted_or_traced_model(self, frontend: str | None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scripts = [torch.jit.script(nn.ReLU()), torch.jit.trace(nn.ReLU(), X)]
        for script in scripts:
            for model in (script, nn.Sequential(script)):
                told = refused(lambda model=model: harden(model.eval(), example_inputs=(X,), frontend=frontend))  # type: ignore[misc]
                assert "ScriptModule, which has no Python code left to trace;\n  pass the original" in told

    def test_a_hardened_model(self, frontend: str | None) -> None:
        hard = harden(module(plain).eval())
        told = refused(lambda: harden(hard, example_inputs=(X,), frontend=frontend))
        assert "hardened already" in told

    def test_what_is_no_model(self, frontend: str | None) -> None:
        for other in (F.relu, nn.ReLU, None):
            told = refused(lambda other=other: harden(other, example_inputs=(X,), frontend=frontend))  # type: ignore[misc]
            assert told.startswith("expected an nn.Module, got ")


class TestData:
    @pytest.mark.parametrize("frontend", ["export", "partial"])
    def test_bad_data_is_refused_whatever_the_graph_is(self, frontend: str) -> None:
        own = module(by_shape if frontend == "export" else lambda self, x: self.act(x), act=nn.ReLU()).eval()
        hard = harden(own, "layer", example_inputs=(X,), frontend=frontend)
        for data in ([], X, [X * torch.nan], [torch.zeros(0, 4)], [object()]):
            with pytest.raises(CalibrationError):
                calibrate(hard, data)

    def test_a_site_that_data_never_reaches_is_named(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            return self.one(x) if x.sum() > 0 else self.two(x)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hard = harden(module(forward, one=nn.Sequential(nn.ReLU()), two=nn.Sequential(nn.ReLU())), "layer")
        with pytest.raises(CalibrationError, match=r"site two\.0 (?s:.*)calibrate with data that reaches it"):
            calibrate(hard, [X.abs()])

    def test_a_wrong_number_of_inputs_is_a_type_error_as_ever(self) -> None:
        hard = harden(module(plain).eval())
        with pytest.raises((TypeError, TracingError)):
            hard(X, X)
