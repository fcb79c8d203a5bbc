"""Clip-Act: the thresholds that its search finds, what it spends, and what it leaves alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fitact_fx
from fitact_fx.budget import Search
from fitact_fx.errors import CalibrationError, RecipeError
from fitact_fx.faults import BitFlip, FaultList
from fitact_fx.holdout import Holdout
from fitact_fx.probe import Probe, picked
from fitact_fx.schemes.clip_act import ClipAct

QUICK = Search(rates=(1e-3, 1e-2), draws=3, images=40, parts=4, rounds=2)
FIRST_TRIAL = 10**9


class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.hidden = nn.Linear(6 * 16, 12)
        self.linear = nn.Linear(12, 3)

    def forward(self, x):
        return self.linear(F.relu(self.hidden(F.relu(self.conv(x)).flatten(1))))


def problem(count=192, seed=0):
    """Images (count, 1, 4, 4) with the brightest of three bands as their class."""
    x = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return x, x[:, 0, :3].sum(2).argmax(1)


def in_batches(x, y=None, size=32):
    return list(x.split(size)) if y is None else list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = SmallNet()
    x, y = problem(512, seed=1)
    adam = torch.optim.Adam(made.parameters(), lr=0.02)
    for _ in range(60):
        adam.zero_grad()
        F.cross_entropy(made(x), y).backward()
        adam.step()
    adam.zero_grad()
    return made.eval()


def calibrated(model, data, search=QUICK, **options):
    hard = fitact_fx.harden(model, scheme=ClipAct(search=search), **options)
    fitact_fx.calibrate(hard, data)
    return hard


def uppers(hard):
    return {name: upper.item() for name, (_, upper) in fitact_fx.bounds(hard).items()}


def samples_of(batches):
    return torch.cat([batch.args[0] for batch in batches]), torch.cat([batch.targets for batch in batches])


def area_of(hard, x, y, seed, search):
    """The mean of the two rates' mean accuracies: a trapezoid has its mean at the middle of its sides."""
    by_rate = []
    for number, rate in enumerate(search.rates):
        accuracies = []
        for draw in range(search.draws):
            trial = FIRST_TRIAL + number * search.draws + draw
            with BitFlip(rate=rate).draw(hard, "q15.16", seed, trial).applied(hard), torch.no_grad():
                scores = hard(x).numpy()
            right = (scores.argmax(1) == y.numpy()) & np.isfinite(scores).all(1)
            accuracies.append(right.mean())
        by_rate.append(np.mean(accuracies))
    return float(np.mean(by_rate))


def test_the_search_finds_what_trying_every_edge_by_hand_finds(model):
    data = in_batches(*problem())
    one_round = replace(QUICK, rounds=1)
    hard = calibrated(model, data, one_round)
    by_hand, before = calibrated(model, data), uppers(hard)
    x, y = samples_of(picked(Holdout.of(data, 0.2), 40))
    for name, maximum in before.items():
        areas = {}
        for share in (1.0, 0.75, 0.5, 0.25):
            fitact_fx.set_bounds(by_hand, {name: (None, share * maximum)})
            areas[share] = area_of(by_hand, x, y, 5, one_round)
        best = max(areas, key=lambda share: (areas[share], share))
        fitact_fx.set_bounds(by_hand, {name: (None, best * maximum)})
    record = fitact_fx.post_train(hard, data, max_drop=0.99, seed=5)
    assert uppers(hard) == uppers(by_hand)
    assert record.area_after == pytest.approx(areas[best])
    assert record.before == pytest.approx(before)
    assert record.after == uppers(hard)
    assert any(record.after[name] < record.before[name] for name in before), "the faults must tell edges apart"


def test_a_second_round_looks_between_the_neighbours_of_the_best(model):
    data = in_batches(*problem())
    first, second = (calibrated(model, data, replace(QUICK, rounds=rounds)) for rounds in (1, 2))
    one, two = (fitact_fx.post_train(hard, data, max_drop=0.99, seed=5) for hard in (first, second))
    name = next(iter(one.before))
    assert abs(two.after[name] - one.after[name]) <= one.before[name] / 4 * (1 + 1e-6)
    assert two.area_after >= one.area_before
    assert one.evaluations == 1 + 2 * 3, "the maxima, and three edges below for each of two sites"
    assert one.evaluations < two.evaluations <= 1 + 2 * 6


def test_injections_are_counted_and_every_edge_meets_the_same_lists(model, monkeypatch):
    data, applied = in_batches(*problem()), []
    original = FaultList.applied

    def counted(faults, target):
        applied.append(faults.checksum)
        return original(faults, target)

    monkeypatch.setattr(FaultList, "applied", counted)
    record = fitact_fx.post_train(calibrated(model, data), data, max_drop=0.99)
    assert record.injections == len(applied) == record.evaluations * 6
    assert applied == applied[:6] * record.evaluations
    assert len(set(applied)) == 6


def test_the_faults_of_a_search_are_none_that_a_campaign_starts_with(model, monkeypatch):
    data, drawn = in_batches(*problem()), []
    original = BitFlip.draw

    def watched(fault, *args):
        drawn.append(original(fault, *args))
        return drawn[-1]

    hard = calibrated(model, data)
    monkeypatch.setattr(BitFlip, "draw", watched)
    fitact_fx.post_train(hard, data, max_drop=0.99, seed=3)
    assert [faults.trial for faults in drawn] == [FIRST_TRIAL + number for number in range(6)]
    assert {faults.seed for faults in drawn} == {3}
    kinds = {name.rpartition(".")[2] for name in drawn[0].shapes}
    assert {"weight", "bias", "upper"} <= kinds, "bounds are hit as parameters are"


def test_the_same_seed_finds_the_same_thresholds_in_any_order_of_the_data(model):
    def found(seed, batch):
        loader = DataLoader(TensorDataset(*problem()), batch_size=batch, shuffle=True)
        hard = calibrated(model, in_batches(*problem()))
        record = fitact_fx.post_train(hard, loader, max_drop=0.99, seed=seed)
        return uppers(hard), record.area_before

    assert found(3, 32) == found(3, 50)
    assert found(3, 32)[1] != found(4, 32)[1]


@pytest.mark.parametrize("max_drop", [0.0, 0.03])
def test_thresholds_that_cost_more_than_max_drop_are_not_chosen(model, max_drop):
    x, y = problem()
    data = in_batches(x, y)
    free = fitact_fx.post_train(calibrated(model, data), data, max_drop=0.99, seed=4)
    assert free.drop > max_drop, "or the limit would not be felt"
    hard = calibrated(model, data)
    record = fitact_fx.post_train(hard, data, max_drop=max_drop, seed=4)
    held_x, held_y = samples_of(list(Holdout.of(data, 0.2).held_out_batches()))
    with torch.no_grad():
        clean, now = ((net(held_x).argmax(1) == held_y).double().mean().item() for net in (model, hard))
    assert record.drop == pytest.approx(clean - now)
    assert record.drop <= max_drop + 1e-9
    assert record.clean_accuracy == pytest.approx(clean)
    assert record.held_out == len(held_x)


def test_maxima_that_cost_too_much_already_are_refused_and_stay(model):
    data = in_batches(*problem())
    hard = fitact_fx.harden(model, scheme=ClipAct(search=QUICK))
    fitact_fx.set_bounds(hard, {"*": (None, 1e-3)})
    with pytest.raises(CalibrationError, match=r"calibrated bounds themselves cost .* more than max_drop allows"):
        fitact_fx.post_train(hard, data)
    assert list(uppers(hard).values()) == pytest.approx([1e-3, 1e-3])


def test_without_labels_the_clean_models_answers_are_right(model):
    x, _ = problem()
    with torch.no_grad():
        answers = model(x).argmax(1)
    unlabelled, labelled = calibrated(model, in_batches(x)), calibrated(model, in_batches(x))
    record = fitact_fx.post_train(unlabelled, in_batches(x), max_drop=0.99)
    same = fitact_fx.post_train(labelled, in_batches(x, answers), max_drop=0.99)
    assert record.clean_accuracy == 1.0
    assert replace(record, seconds=0) == replace(same, seconds=0)


def test_all_of_little_data_is_used_and_the_record_says_how_much(model):
    data = in_batches(*problem(30))
    record = fitact_fx.post_train(calibrated(model, data), data, max_drop=0.99)
    assert (record.images, record.held_out) == (24, 6)
    few = in_batches(*problem(18))
    with pytest.raises(
        CalibrationError, match=r"^14 samples are too few to learn from, beside 4 to check on;\n  pass 20 or more"
    ):
        fitact_fx.post_train(calibrated(model, few), few)


def test_an_interrupt_leaves_the_maxima_and_no_fault(model, monkeypatch):
    data = in_batches(*problem())
    hard = calibrated(model, data)
    before = {name: value.clone() for name, value in hard.state_dict().items()}
    original, calls = Probe.accuracy, []

    def interrupted(probe, network):
        calls.append(uppers(hard))
        if len(calls) == 20:
            raise KeyboardInterrupt
        return original(probe, network)

    monkeypatch.setattr(Probe, "accuracy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitact_fx.post_train(hard, data, max_drop=0.99)
    assert calls[-1] != calls[0], "a candidate stood when it came"
    assert all(torch.equal(value, before[name]) for name, value in hard.state_dict().items())


def test_nothing_but_bounds_changes(model):
    data = in_batches(*problem())
    hard = calibrated(model, data).train()
    before = {name: value.clone() for name, value in hard.state_dict().items()}
    state = torch.get_rng_state()
    fitact_fx.post_train(hard, data, max_drop=0.99, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in hard.modules())
    changed = [name for name, value in hard.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    assert all(name.endswith("upper") for name in changed)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_small_side_of_two_stays_while_the_threshold_is_beyond_it():
    torch.manual_seed(0)
    gelu = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    hard = calibrated(gelu, in_batches(problem()[0]))
    before = fitact_fx.bounds(hard)["2"]
    fitact_fx.post_train(hard, in_batches(problem()[0]), max_drop=0.99, seed=1)
    after = fitact_fx.bounds(hard)["2"]
    limit = after[1].item()
    assert after[0].item() == max(before[0].item(), -limit)


def test_the_record_is_one_line_that_names_what_was_spent(model):
    data = in_batches(*problem())
    record = fitact_fx.post_train(calibrated(model, data), data, max_drop=0.99)
    line = str(record)
    assert "\n" not in line
    assert f"{record.injections} injections for {record.evaluations} evaluations" in line
    assert "from 0.001 to 0.01 on 40 images" in line


def test_a_fixed_share_is_that_part_of_the_maximum_and_nothing_is_searched(model):
    x, _ = problem()
    maxima = uppers(calibrated(model, in_batches(x)))
    hard = fitact_fx.harden(model, scheme=ClipAct(share=0.3), data=in_batches(x), max_drop=0.99)
    assert uppers(hard) == {name: (torch.tensor(maximum) * 0.3).item() for name, maximum in maxima.items()}
    with pytest.raises(RecipeError, match=r"clip_act with share=0.3 learns nothing"):
        fitact_fx.post_train(hard, in_batches(x))
