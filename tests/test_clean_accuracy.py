"""What bounds cost on clean samples: the accuracy, and how far they move the outputs."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fitact_fx
from fitact_fx.batches import as_batches
from fitact_fx.clean_accuracy import costs_of
from fitact_fx.errors import CalibrationError
from fitact_fx.holdout import Holdout
from fitact_fx.learning import Learning
from fitact_fx.schemes.fitact import FitAct

X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))


class Headed(nn.Module):
    """Five scores, and what `head` makes of them."""

    def __init__(self, head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 5))
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def bounded(head: Callable[[Tensor], Tensor], upper: float) -> tuple[nn.Module, nn.Module]:
    model = Headed(head).eval()
    hard = fitact_fx.harden(model, "layer")
    fitact_fx.set_bounds(hard, {"*": (None, upper)})
    return model, hard


def by_numpy(model: nn.Module, hard: nn.Module, x: Tensor = X) -> float:
    """One class and one sample after the other, in extended precision."""
    with torch.no_grad():
        clean, scores = (each(x).numpy().astype(np.longdouble) for each in (model, hard))
    variance = np.mean([((one - one.mean()) ** 2).mean() for one in np.moveaxis(clean, 1, 0)])
    moved = [((one - other) ** 2).mean() / variance for one, other in zip(scores, clean, strict=True)]
    return float(np.mean(np.minimum(moved, 1)))


def offset(scores: Tensor) -> Tensor:
    """One class has a head start."""
    return scores + torch.tensor([0.0, 0.0, 500.0, 0.0, 0.0])


@pytest.mark.parametrize("size", [200, 7])
@pytest.mark.parametrize("head", [lambda scores: scores, offset], ids=["plain", "offset"])
def test_outputs_are_moved_by_so_much_of_what_each_class_varies(head: Callable[[Tensor], Tensor], size: int) -> None:
    model, hard = bounded(head, 1.0)
    costs = costs_of(hard, as_batches(X.split(size)))
    assert costs.distortion == pytest.approx(by_numpy(model, hard), rel=1e-4)
    with torch.no_grad():
        agreed = float((model(X).argmax(1) == hard(X).argmax(1)).float().mean())
    assert (costs.clean_accuracy, costs.accuracy) == (1.0, pytest.approx(agreed))
    assert costs.drop == 1.0 - costs.accuracy
    assert costs.samples == 200


def maps(scores: Tensor) -> Tensor:
    """(N, classes, 2, 3)."""
    return torch.stack([scores * factor for factor in (1.0, 2.0, -1.0, 3.0, 0.5, 1.5)], 2).unflatten(2, (2, 3))


def test_the_scores_of_a_class_are_those_at_all_places() -> None:
    model, hard = bounded(maps, 1.0)
    assert costs_of(hard, as_batches(X.split(30))).distortion == pytest.approx(by_numpy(model, hard), rel=1e-6)


def test_a_few_samples_with_outputs_far_beyond_all_others_do_not_speak_for_them() -> None:
    model, hard = bounded(lambda scores: scores, 4.0)
    x = torch.cat([X, torch.full((2, 4), 100.0)])  # all that they have is beyond the bound
    alone, with_them = (costs_of(hard, as_batches([each])).distortion for each in (X, x))
    variance = model(x).detach().var(0, correction=0).mean()
    moved = ((hard(x) - model(x)).detach().square().mean(1) / variance)[-2:]
    assert (moved > 10).all()
    assert with_them <= alone + 2 / len(x)
    assert with_them == pytest.approx(by_numpy(model, hard, x), rel=1e-4)


def masked(scores: Tensor) -> Tensor:
    """Two more classes, which are never the answer."""
    return F.pad(F.pad(scores, (0, 1), value=-1e4), (0, 1), value=-1e9)


def test_classes_that_are_masked_say_nothing_of_how_far_the_others_moved() -> None:
    (_, plain), (_, hard) = bounded(lambda scores: scores, 1.0), bounded(masked, 1.0)
    wanted = costs_of(plain, as_batches([X])).distortion
    assert wanted > 0.01
    assert costs_of(hard, as_batches([X])).distortion == pytest.approx(wanted, rel=1e-9)


def test_classes_that_are_masked_do_not_switch_the_limit_off() -> None:
    model = Headed(masked).eval()
    held_out = torch.cat([batch.args[0] for batch in Holdout.of([X], 0.2).held_out_batches()])
    moved = {}
    for limit in (0.2, math.inf):
        learning = Learning(steps=30, learning_rate=0.1, tightening=50.0, distortion=limit)
        hard = fitact_fx.harden(model, scheme=FitAct(learning=learning), data=[X], max_drop=0.9)
        moved[limit] = by_numpy(model, hard, held_out)
    assert 0.1 < moved[0.2] <= 0.2 < moved[math.inf]


@pytest.mark.parametrize(("upper", "wanted"), [(math.inf, 0.0), (0.0, math.inf)])
def test_outputs_that_never_vary_are_not_moved_at_all_or_infinitely_far(upper: float, wanted: float) -> None:
    _, hard = bounded(lambda scores: scores, upper)
    assert costs_of(hard, as_batches([X[:1]])).distortion == wanted


def test_what_it_costs_on_no_sample_cannot_be_told() -> None:
    _, hard = bounded(lambda scores: scores, 1.0)
    with pytest.raises(CalibrationError, match="none of the samples that were picked came in this pass"):
        costs_of(hard, [])
