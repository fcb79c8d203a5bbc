"""Small programs that once came out wrong, each found by the properties."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fitact_fx
from fitact_fx.faults import BitFlip


def infinite(model: nn.Module, sites: str) -> nn.Module:
    """The model hardened at these sites, with bounds that let everything pass."""
    hard = fitact_fx.harden(model, sites=sites)
    fitact_fx.set_bounds(hard, {"*": (-torch.inf, torch.inf)})
    return hard


def test_dropout_in_place_is_bounded_where_it_is_returned() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.25, inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.dropout(x)

    x = torch.randn(2, 4)
    assert torch.equal(infinite(Dropping().eval(), "logits")(x), x)


def test_alpha_dropout_leaves_its_input_alone_whatever_it_is_told() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.AlphaDropout(0.25, inplace=True)  # torch does not read this flag

        def forward(self, x: Tensor) -> Tensor:
            return self.dropout(x)

    x = torch.randn(2, 4)
    before = x.clone()
    infinite(Dropping().train(), "logits")(x)
    assert torch.equal(x, before)


def test_the_activations_of_an_exported_lstm_are_those_of_the_traced_one() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(1, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x.unsqueeze(1))[0]

    model, inputs = Remembering().eval(), (torch.randn(2, 1),)
    graphs = (fitact_fx.trace(model), fitact_fx.trace(model, inputs, frontend="export"))
    names = [[site.name for site in fitact_fx.find_sites(graph)] for graph in graphs]
    assert names == [["lstm"], ["lstm"]]


def test_an_exported_graph_runs_on_the_layout_it_was_exported_for() -> None:
    class Flattening(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.contiguous().view(-1, 8).relu()

    model, x = Flattening().eval(), torch.randn(2, 2, 2, 2).contiguous(memory_format=torch.channels_last)
    assert torch.equal(fitact_fx.trace(model, (x,), frontend="export")(x), model(x))


def test_a_product_with_the_argument_of_a_part_is_a_site() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(4))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.weight).relu()

    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Product()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if x.sum() < 9 else x

    found = fitact_fx.find_sites(fitact_fx.trace(Caller(), frontend="partial"), "linear")
    assert [site.name for site in found] == ["body.matmul"]


def test_a_gated_product_is_a_site_also_when_its_gate_is_bounded(tmp_path: Path) -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tanh(nn.functional.softplus(x))

    hard = fitact_fx.harden(Gated(), "layer", sites=lambda site: site.kind != "self_gated")
    fitact_fx.calibrate(hard, [torch.randn(2, 4)])
    assert [site.name for site in fitact_fx.find_sites(hard)] == ["mul"]
    fitact_fx.save(hard, tmp_path / "bounds")
    assert list(fitact_fx.bounds(fitact_fx.load(tmp_path / "bounds", Gated()))) == ["softplus", "tanh"]


def test_a_gated_product_of_a_value_that_is_written_back_is_a_site() -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.relu(x, inplace=True)
            return x * torch.sigmoid(x)

    hard = infinite(Gated().eval(), "activations")
    x, again = (torch.linspace(-1, 1, 8).reshape(2, 4) for _ in range(2))
    assert list(fitact_fx.bounds(hard)) == ["relu", "sigmoid", "mul"]
    assert torch.equal(hard(x), Gated()(again))
    assert torch.equal(x, again)


@pytest.mark.parametrize("call", [torch.sigmoid_, torch.selu_, torch.celu_, F.elu_, lambda x: F.silu(x, inplace=True)])
def test_an_activation_in_place_on_a_view_with_gaps_is_computed_there(
    call: Callable[[Tensor], Tensor],
) -> None:
    class Gapped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            whole = x * 1
            call(whole[:, ::3])
            return whole

    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(infinite(Gapped().eval(), "activations")(x), Gapped()(x))


def test_every_value_means_no_value_that_is_several_tensors() -> None:
    class Chunked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=1)
            return first + second

    x = torch.randn(2, 4)
    faulty = fitact_fx.inject(Chunked().eval(), "*", BitFlip(rate=0), example_inputs=x)
    assert torch.equal(faulty(x), Chunked()(x))
