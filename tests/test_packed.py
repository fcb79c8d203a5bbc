"""Sequences of several lengths: packed for a recurrent layer, and padded again behind it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fitact_fx

X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([5, 3, 2])


class Imported(nn.Module):
    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.first, self.second = layer(4, 6, batch_first=True), layer(6, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = self.second(self.first(packed)[0])
        padded, _ = pad_packed_sequence(output, batch_first=True)
        result: Tensor = self.head(padded.sum(1))
        return result


class Attribute(Imported):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = self.second(packed)
        return self.head(rnn.pad_packed_sequence(output, batch_first=True)[0].sum(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_padded_output_is_the_layers_site(layer: type[nn.RNNBase]) -> None:
    model = Imported(layer).eval()
    hard = fitact_fx.harden(model, "channel")
    assert list(fitact_fx.bounds(hard)) == ["second"]
    assert fitact_fx.verify(model, hard, (X, LENGTHS))
    fitact_fx.calibrate(hard, [((X, LENGTHS), None)])
    assert fitact_fx.verify(model, hard, (X, LENGTHS))


def test_functions_reached_through_their_module_are_recorded_too() -> None:
    class Sorted(Attribute):
        def __init__(self) -> None:
            super().__init__(nn.LSTM)
            self.second = nn.LSTM(4, 6, batch_first=True)

    model = Sorted().eval()
    hard = fitact_fx.harden(model, "layer")
    assert hard.frontend == "symbolic"
    assert list(fitact_fx.bounds(hard)) == ["second"]
    assert fitact_fx.verify(model, hard, (X, LENGTHS))


def test_a_bound_holds_for_the_padded_output() -> None:
    hard = fitact_fx.harden(Imported(nn.LSTM).eval(), "layer")
    fitact_fx.set_bounds(hard, {"second": (-0.01, 0.01)})
    seen: list[Tensor] = []
    hard.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    hard(X, LENGTHS)
    assert seen[0].abs().max() <= 5 * 0.0125
