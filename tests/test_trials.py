"""Accuracy under faults against a loop written out, and what must be the same before and after."""

import struct

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fitact_fx
from fitact_fx.batches import Batch
from fitact_fx.campaigns import trials
from fitact_fx.campaigns.run_time import fastest_runs
from fitact_fx.campaigns.trials import Accuracies, accuracy, measure
from fitact_fx.errors import FitactError
from fitact_fx.faults import BitFlip, FaultList, Memory

RATES = (1e-3, 1e-2)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4))


@pytest.fixture
def test_set(model: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, model.eval()(x).argmax(1)


@pytest.fixture
def variants(model: nn.Module, test_set: tuple[Tensor, Tensor]) -> dict[str, nn.Module]:
    hard = fitact_fx.harden(model, "neuron")
    fitact_fx.calibrate(hard, [test_set[0]])
    return {"plain": model, "hard": hard}


def flipped_by_hand(value: float, bit: int) -> float:
    """One bit of a float32 flipped, by way of its four bytes."""
    (word,) = struct.unpack("<I", struct.pack("<f", value))
    return float(struct.unpack("<f", struct.pack("<I", word ^ 1 << bit))[0])


def test_every_draw_is_what_a_loop_written_out_gives(model: nn.Module, test_set: tuple[Tensor, Tensor]) -> None:
    got = measure({"plain": model}, test_set, RATES, trials=4, format="float32", seed=7)
    x, y = (part.numpy() for part in test_set)
    for rate in RATES:
        for trial in range(4):
            weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
            for row in BitFlip(rate=rate).draw(model, format="float32", seed=7, trial=trial).rows:
                flat = weights[row.tensor].reshape(-1)
                flat[row.element] = flipped_by_hand(float(flat[row.element]), row.bit)
            with np.errstate(all="ignore"):
                hidden = np.maximum(x @ weights["0.weight"].T + weights["0.bias"], 0)
                scores = hidden @ weights["3.weight"].T + weights["3.bias"]
            # A NaN or an infinity in front is no right answer.
            right = (scores.argmax(1) == y) & np.isfinite(scores.max(1))
            assert got.draws["plain", rate][trial] == pytest.approx(right.mean(), abs=1 / 300)


def test_all_variants_get_the_same_faults(
    variants: dict[str, nn.Module], test_set: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[FaultList] = []

    class Watched(BitFlip):
        def draw(self, *args: object, **kwargs: object) -> FaultList:
            drawn.append(super().draw(*args, **kwargs))  # type: ignore[arg-type]
            return drawn[-1]

    monkeypatch.setattr(trials, "BitFlip", Watched)
    measure(variants, test_set, RATES, trials=3)
    assert len(drawn) == 2 * 2 * 3
    for plain, hard in zip(drawn[::2], drawn[1::2], strict=True):
        parameters = {one.name for one in plain.tensors}
        assert list(plain.rows) == [row for row in hard.rows if row.tensor in parameters]
    assert any(row.tensor.endswith("upper") for faults in drawn[1::2] for row in faults.rows), "no bound was hit"


def test_everything_is_as_before_afterwards(
    variants: dict[str, nn.Module], test_set: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    variants["plain"].train()
    before = {name: {key: t.clone() for key, t in m.state_dict().items()} for name, m in variants.items()}
    modes = {name: [module.training for module in m.modules()] for name, m in variants.items()}
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    measure(variants, test_set, RATES, trials=2)
    calls = iter(range(100))

    def interrupted(*args: object) -> float:
        if next(calls) > 2:
            raise KeyboardInterrupt
        return 0.0

    monkeypatch.setattr(trials, "accuracy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(variants, test_set, RATES, trials=2)
    for name, variant in variants.items():
        after = variant.state_dict()
        assert all(tensor.equal(after[key]) for key, tensor in before[name].items())
        assert [module.training for module in variant.modules()] == modes[name]
    assert torch.get_rng_state().equal(generator)
    assert torch.get_num_threads() == threads


def test_the_same_seed_gives_the_same_draws_and_another_seed_others(
    variants: dict[str, nn.Module], test_set: tuple[Tensor, Tensor]
) -> None:
    first, again, other = (measure(variants, test_set, [1e-2], trials=6, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.draws["plain", 1e-2], again.draws["plain", 1e-2])
    assert not np.array_equal(first.draws["plain", 1e-2], other.draws["plain", 1e-2])


def test_a_trial_does_not_depend_on_how_many_there_are_or_on_the_batches(
    model: nn.Module, test_set: tuple[Tensor, Tensor]
) -> None:
    few = measure({"plain": model}, test_set, [1e-2], trials=2)
    batches = list(zip(*(part.split(100) for part in test_set), strict=True))
    many = measure({"plain": model}, batches, [1e-3, 1e-2], trials=5)
    assert few.draws["plain", 1e-2].tolist() == many.draws["plain", 1e-2][:2].tolist()
    assert few.clean == many.clean == {"plain": 1.0}


class Says(nn.Module):
    """Gives the scores it was made with."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([scores]))

    def forward(self, x: Tensor) -> Tensor:
        return self.scores.expand(len(x), -1)


@pytest.mark.parametrize(
    ("scores", "right"),
    [
        ([2.0, 1.0, 0.0], 1.0),
        ([float("nan")] * 3, 0.0),
        ([2.0, float("nan"), 0.0], 0.0),
        ([float("nan"), 1.0, 0.0], 0.0),
        ([float("inf"), 1.0, 0.0], 0.0),
        ([-float("inf")] * 3, 0.0),
        ([2.0, -float("inf"), 0.0], 1.0),
    ],
)
def test_an_answer_that_is_not_a_number_is_never_right_by_accident(scores: list[float], right: float) -> None:
    batch = Batch((torch.zeros(4, 2),), {}, torch.zeros(4, dtype=torch.int64))
    assert accuracy(Says(scores), [batch]) == right


def test_intervals_and_differences_are_over_draws() -> None:
    draws = {("a", 1e-5): np.array([0.9, 0.8, 0.4, 0.9]), ("b", 1e-5): np.array([0.8, 0.7, 0.3, 0.8])}
    found = Accuracies({"a": 0.9, "b": 0.9}, draws)
    assert found.rates == (1e-5,)
    assert found.interval("a", 1e-5).mean == pytest.approx(0.75)
    assert found.worst("b", 1e-5) == 0.3
    paired = found.difference("a", "b", 1e-5)
    assert (paired.low, paired.mean, paired.high) == pytest.approx((0.1, 0.1, 0.1))


def test_a_test_set_without_labels_is_refused(model: nn.Module) -> None:
    with pytest.raises(FitactError, match="a batch of the test set has no labels, and accuracy needs them"):
        measure({"plain": model}, [torch.zeros(2, 5)], RATES, trials=1)


def test_nothing_to_measure_is_refused(model: nn.Module, test_set: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(FitactError, match="nothing to measure: 1 variants, 0 rates, 3 trials"):
        measure({"plain": model}, test_set, [], trials=3)


def test_a_memory_without_hits_needs_no_evaluation(model: nn.Module, test_set: tuple[Tensor, Tensor]) -> None:
    assert len(BitFlip(rate=0).draw(Memory.of(model))) == 0
    assert measure({"plain": model}, test_set, [0], trials=2).draws["plain", 0.0].tolist() == [1.0, 1.0]


def test_the_fastest_run_of_each_is_kept() -> None:
    runs = {"a": 0, "b": 0}

    def counted(name: str) -> object:
        def run(x: Tensor) -> None:
            runs[name] += 1

        return run

    fastest = fastest_runs({name: counted(name) for name in runs}, torch.zeros(1), seconds=0)  # type: ignore[misc]
    assert set(fastest) == {"a", "b"}
    assert min(fastest.values()) >= 0
    assert runs == {"a": 6, "b": 6}  # one to warm up and five rounds
