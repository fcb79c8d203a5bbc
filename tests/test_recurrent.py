"""Recurrent layers: what they give is bounded where it is taken out."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import INFINITE, bitwise_equal, module, run
from torch import Tensor, nn

import fitact_fx
from fitact_fx import find_sites, harden, set_bounds, trace, verify
from fitact_fx.errors import SiteError, TracingError

X = torch.linspace(-3, 3, 2 * 5 * 4).reshape(2, 5, 4)
CELL = X[:, 0]


def sites(model: nn.Module, frontend: str | None = None, *inputs: Tensor) -> dict[str, str]:
    return {site.name: site.kind for site in find_sites(trace(model, inputs or None, frontend=frontend))}


def like(model: nn.Module, *inputs: Any, **options: Any) -> nn.Module:
    hard = harden(model, **options)
    set_bounds(hard, INFINITE)
    assert bitwise_equal(run(model, inputs), run(hard, inputs))
    assert bitwise_equal(run(model, inputs), run(copy.deepcopy(hard), inputs))
    return hard


def lstm(**options: Any) -> nn.LSTM:
    return nn.LSTM(4, 3, **{"batch_first": True, **options})


def gru(**options: Any) -> nn.GRU:
    return nn.GRU(4, 3, **{"batch_first": True, **options})


def rnn(**options: Any) -> nn.RNN:
    return nn.RNN(4, 3, **{"batch_first": True, **options})


# What is done with the result of a layer, and which of its tensors are sites then.
TAKES: list[tuple[str, Callable[[Any], Any], list[str]]] = [
    ("lstm", lambda told: told[0], [""]),
    ("lstm", lambda told: told[1][0], [".h_n"]),
    ("lstm", lambda told: told[1][1], [".c_n"]),
    ("lstm", lambda told: told[1][0] + told[1][1], [".h_n", ".c_n"]),
    ("lstm", lambda told: told, ["", ".h_n", ".c_n"]),
    ("lstm", lambda told: (told[0][:, -1], told[0].sum()), [""]),
    ("lstm", lambda told: told[1][0][-1], [".h_n"]),
    ("gru", lambda told: told[0], [""]),
    ("gru", lambda told: told[1], [".h_n"]),
    ("gru", lambda told: told, ["", ".h_n"]),
    ("rnn", lambda told: told[1].sum() + told[0], ["", ".h_n"]),
]
LAYERS = {"lstm": lstm, "gru": gru, "rnn": rnn}


class TestNames:
    @pytest.mark.parametrize(("name", "take", "expected"), TAKES)
    @pytest.mark.parametrize("frontend", ["symbolic", "export", "partial"])
    def test_only_what_is_used_is_a_site(
        self, name: str, take: Callable[[Any], Any], expected: list[str], frontend: str
    ) -> None:
        model = module(lambda self, x: take(self.layer(x)), layer=LAYERS[name]()).eval()  # type: ignore[operator]
        found = sites(model, frontend, X)
        assert found == {f"layer{suffix}": name for suffix in expected}

    def test_a_layer_called_twice_is_counted(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            y, (h, _) = self.lstm(x)
            z, _ = self.lstm(x * 2, (h, h))
            return y + z

        assert list(sites(module(forward, lstm=lstm()))) == ["lstm", "lstm.h_n", "lstm_1"]

    def test_an_unpacked_result_and_an_indexed_one_are_one_site(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            told = self.lstm(x)
            return told[0] * 2 + told[0][:, -1:]

        assert list(sites(module(forward, lstm=lstm()))) == ["lstm"]
        like(module(forward, lstm=lstm()), X)

    def test_cells(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            h, c = self.lstm(x)
            g = self.gru(h, c)
            return self.rnn(g)

        model = module(forward, lstm=nn.LSTMCell(4, 3), gru=nn.GRUCell(3, 3), rnn=nn.RNNCell(3, 3, nonlinearity="relu"))
        names = {"lstm": "lstm_cell", "lstm.c_n": "lstm_cell", "gru": "gru_cell", "rnn": "rnn_cell"}
        assert sites(model) == names
        like(model, CELL)

    def test_a_layer_as_the_whole_model_is_exported(self) -> None:
        for layer, count in ((lstm(), 3), (gru(), 2), (rnn(), 2)):
            assert len(sites(layer.eval(), None, X)) == count


class TestWhatTheyCompute:
    @pytest.mark.parametrize("make", [lstm, gru, rnn])
    @pytest.mark.parametrize(
        "options",
        [{}, {"num_layers": 2, "dropout": 0.3}, {"bidirectional": True}, {"batch_first": False}, {"bias": False}],
        ids=str,
    )
    def test_it_is_the_layers(self, make: Callable[..., nn.Module], options: dict[str, Any]) -> None:
        for training in (True, False):
            model = module(lambda self, x: self.layer(x)[0].relu(), layer=make(**options)).train(training)
            like(model, X)

    @pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
    def test_a_projection_and_a_given_state(self) -> None:
        def forward(self: nn.Module, x: Tensor, h: Tensor, c: Tensor) -> Any:
            y, state = self.lstm(x, (h, c))
            return y, state[0], state[1]

        model = module(forward, lstm=lstm(proj_size=2))
        like(model, X, torch.ones(1, 2, 2), torch.ones(1, 2, 3))

    def test_a_state_that_is_passed_on_whole(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Any:
            y, state = self.one(x)
            z, last = self.two(x, state)
            return y + z, last

        model = module(forward, one=lstm(), two=lstm())
        hard = like(model, X)
        assert {"one", "one.h_n", "one.c_n", "two"} <= set(fitact_fx.bounds(hard))
        assert verify(model, hard, X)

    def test_a_loop_over_cells(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            h = c = x.new_zeros(2, 3)
            for step in range(5):
                h, c = self.cell(x[:, step], (h, c))
            return self.head(F.relu(h))

        model = module(forward, cell=nn.LSTMCell(4, 3), head=nn.Linear(3, 2))
        hard = like(model, X)
        assert len([name for name in fitact_fx.bounds(hard) if name.startswith("cell")]) >= 9

    def test_a_packed_sequence_gives_the_models_values_or_a_clear_refusal(self) -> None:
        def forward(self: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            y, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
            return F.relu(y)

        model = module(forward, lstm=lstm()).eval()
        try:
            hard = harden(model)
        except fitact_fx.FitactError:
            return
        set_bounds(hard, INFINITE)
        assert bitwise_equal(run(model, (X, torch.tensor([5, 3]))), run(hard, (X, torch.tensor([5, 3]))))


class TestBounds:
    @pytest.mark.parametrize("frontend", ["symbolic", "export"])
    def test_each_of_an_lstms_tensors_is_held(self, frontend: str) -> None:
        model = module(lambda self, x: self.lstm(x), lstm=lstm()).eval()
        hard = harden(model, "layer", "ranger", example_inputs=(X,), frontend=frontend)
        set_bounds(hard, {"lstm": (-0.01, 0.01), "lstm.h_n": (-0.02, 0.02), "lstm.c_n": (-0.03, 0.03)})
        with torch.no_grad():
            y, (h, c) = hard(X)
        for values, limit in ((y, 0.01), (h, 0.02), (c, 0.03)):
            assert values.abs().max() == pytest.approx(limit)

    def test_a_relu_rnn_cannot_pass_its_bound(self) -> None:
        model = module(lambda self, x: self.rnn(x)[0], rnn=rnn(nonlinearity="relu"))
        hard = harden(model, "layer", "ranger")
        set_bounds(hard, {"rnn": (None, 0.5)})
        with torch.no_grad():
            model.rnn.weight_ih_l0.mul_(1e4)  # type: ignore[operator, union-attr]
            assert hard(X).max() == 0.5

    def test_a_nan_in_the_state_does_not_travel(self) -> None:
        hard = harden(module(lambda self, x: self.gru(x)[0], gru=gru()), "layer")
        set_bounds(hard, {"gru": (-1.0, 1.0)})
        with torch.no_grad():
            assert hard(X * torch.nan).isfinite().all()

    def test_channels_are_features_and_the_length_is_free(self) -> None:
        model = module(lambda self, x: self.gru(x)[0], gru=gru()).eval()
        data = [X, X[:, :3], X[:1]]
        hard = harden(model, "channel")
        fitact_fx.calibrate(hard, data)
        low, high = fitact_fx.bounds(hard)["gru"]
        with torch.no_grad():
            seen = torch.cat([model(each).flatten(0, 1) for each in data])
        assert low is not None
        assert high is not None
        torch.testing.assert_close(low.flatten(), seen.amin(0))
        torch.testing.assert_close(high.flatten(), seen.amax(0))
        for each in data:
            torch.testing.assert_close(run(hard, (each,)), run(model, (each,)))

    def test_an_exported_layer_says_that_its_length_is_fixed(self) -> None:
        """torch.export itself takes the length of what goes into a recurrent layer for a constant."""
        model = module(lambda self, x: self.gru(x)[0], gru=gru()).eval()
        hard = harden(model, "channel", example_inputs=(X,), frontend="export")
        fitact_fx.calibrate(hard, [X, X[:1]])
        with pytest.raises(TracingError, match=r"it needs x\.size\(\)\[1\] == 5"):
            hard(X[:, :3])

    def test_channels_of_a_state_are_its_features(self) -> None:
        model = module(lambda self, x: self.lstm(x)[1], lstm=lstm()).eval()
        hard = harden(model, "channel")
        fitact_fx.calibrate(hard, [X, X[:1]])
        assert {tuple(high.shape) for _, high in fitact_fx.bounds(hard).values() if high is not None} == {(1, 1, 3)}

    def test_neuron_bounds_of_a_state_do_not_depend_on_the_batch(self) -> None:
        """(layers, N, H): the batch is dimension 1 here, so a bound per neuron is one per layer and feature."""
        model = module(lambda self, x: self.lstm(x)[1], lstm=lstm(num_layers=2)).eval()
        hard = harden(model, "neuron")
        try:
            fitact_fx.calibrate(hard, [X, X[:1]])
        except SiteError as error:
            assert 'granularity="channel"' in str(error)  # noqa: PT017  either is right
            return
        assert {tuple(high.shape) for _, high in fitact_fx.bounds(hard).values() if high is not None} == {(2, 1, 3)}

    def test_bounds_are_saved_and_loaded(self, tmp_path: Path) -> None:
        model = module(lambda self, x: self.lstm(x), lstm=lstm()).eval()
        hard = harden(model, "channel")
        fitact_fx.calibrate(hard, [X])
        fitact_fx.save(hard, tmp_path / "bounds")
        loaded = fitact_fx.load(tmp_path / "bounds", model)
        assert list(fitact_fx.bounds(loaded)) == ["lstm", "lstm.h_n", "lstm.c_n"]
        with torch.no_grad():
            assert torch.equal(loaded(X)[1][1], hard(X)[1][1])
