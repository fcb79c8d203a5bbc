"""Bounds from few samples cost accuracy on new ones, which a held-out part of the same samples does not show."""

import re
import warnings

import pytest
import torch
from counted_data import Counting
from torch import nn
from torch.utils.data import DataLoader

import fitact_fx
from fitact_fx import learning, new_samples, progression, searching
from fitact_fx.answers import IGNORED
from fitact_fx.bounded import bounded_sites
from fitact_fx.budget import Search
from fitact_fx.errors import CostlyWarning
from fitact_fx.holdout import Holdout
from fitact_fx.learning import Learning
from fitact_fx.new_samples import warn_of_new_samples
from fitact_fx.progression import Progressive
from fitact_fx.schemes.clip_act import ClipAct
from fitact_fx.schemes.fitact import FitAct
from fitact_fx.schemes.proact import ProAct

SCHEMES = {
    "fitact": FitAct(learning=Learning(steps=5)),
    "proact": ProAct(learning=Progressive(steps=2, rounds=1)),
    "clip_act": ClipAct(search=Search(rates=(1e-4, 1e-3), draws=2, images=32, parts=2, rounds=1)),
}


def net(activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 256), activation(), nn.Linear(256, 10)).eval()


def images(count, seed=1):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def post_trained(scheme, granularity, data, calibrated_on=None, model=None, max_drop=0.01):
    hard = fitact_fx.harden(model or net(), granularity, scheme)
    fitact_fx.calibrate(hard, calibrated_on or data)
    fitact_fx.post_train(hard, data, max_drop=max_drop)
    return hard


def state_of(hard):
    """All that asking could change, and the very tensors."""
    sites = bounded_sites(hard).values()
    memory = [(name, held) for site in sites for name, held in site.memory.items()]
    return (
        [(name, id(held)) for name, held in memory],
        [held.clone() for _, held in memory],
        [(site.stored, site.scale, site.policy) for site in sites],
        [module.training for module in hard.modules()],
        torch.get_rng_state(),
    )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def asked(hard, data, max_drop=0.01):
    """What the question alone says, for bounds as they are: (changed answers, samples held out), or nothing."""
    before, holdout = state_of(hard), Holdout.of(data, 0.2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.set_rng_state(before[-1])
        warn_of_new_samples(hard, holdout, max_drop)
    assert same(before, state_of(hard))
    return [numbers(str(each.message)) for each in told]


def numbers(message):
    changed, held_out = re.search(r"answer on (\d+) of the (\d+) others", message).groups()
    return int(changed), int(held_out)


def slack(bound, scale):
    """How far a value may lie beyond its bound, see fitact_fx.policies.limits."""
    return 2**-10 * (bound.abs() + scale / 4)


def by_hand(model, data, sides=("lower", "upper"), of=lambda x: x):
    """The same, from the ranges of the others alone, in torch's own operators; `of` are the values that bounds see."""
    holdout = Holdout.of(data, 0.2)
    seen, new = (
        of(torch.cat([batch.args[0] for batch in part]))
        for part in (holdout.learned_batches(), holdout.held_out_batches())
    )
    first, activation, last = model
    with torch.no_grad():
        values, theirs = activation(first(seen)), activation(first(new))
        low, high = values.amin(0), values.amax(0)
        one_sided = not activation(torch.tensor(-1.0)) < 0
        scale = max(float(high.max()), 0.0 if one_sided else float(-low.min()))
        inside = torch.ones_like(theirs, dtype=torch.bool)
        if "upper" in sides:
            inside &= theirs <= high + slack(high, scale)
        if "lower" in sides and not one_sided:
            inside &= theirs >= low - slack(low, scale)
        changed = last(theirs.where(inside, 0.0)).argmax(1) != last(theirs).argmax(1)
    return int(changed.sum()), len(new)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_every_learning_tells_what_others_ranges_cost(scheme):
    with pytest.warns(CostlyWarning, match="more than max_drop") as told:
        post_trained(scheme, "neuron", [images(100)])
    (warning,) = (each for each in told if "on new samples" in str(each.message))
    assert numbers(str(warning.message)) == by_hand(net(), [images(100)])
    assert warning.filename == __file__


@pytest.mark.parametrize("labels", [None, torch.randint(0, 10, (300,), generator=torch.Generator().manual_seed(2))])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_both_bounds_are_taken_back_whatever_the_labels(activation, labels):
    hard = fitact_fx.harden(net(activation), "neuron")
    fitact_fx.calibrate(hard, [images(300)])
    expected = by_hand(net(activation), [images(300)])
    assert expected[0] > 0
    assert asked(hard, [images(300) if labels is None else (images(300), labels)], max_drop=0.0) == [expected]


@pytest.mark.parametrize(("granularity", "count"), [("layer", 100), ("neuron", 20_000)])
def test_few_bounds_and_many_samples_are_no_reason_for_it(granularity, count):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        post_trained(SCHEMES["fitact"], granularity, [images(count)])


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Sigmoid])
def test_bounds_from_other_data_are_not_taken_back(activation):
    model = net(activation)
    with torch.no_grad():
        model[0].weight *= 8  # many samples reach where a kind saturates
    hard = fitact_fx.harden(model, "neuron")
    fitact_fx.calibrate(hard, [images(20_000, seed=7)])
    assert not asked(hard, [images(100)], max_drop=0.0)


@pytest.mark.parametrize("bound", [float("inf"), 50.0, torch.full((1, 256), torch.inf), torch.full((1, 256), 6.0)])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_bounds_set_by_hand_are_not_taken_back(activation, bound):
    model = net(activation)
    with torch.no_grad():
        model[0].weight *= 3
    hard = fitact_fx.harden(model, "neuron")
    fitact_fx.set_bounds(hard, {"*": (None, bound)})
    changed_anyway = activation is nn.ReLU and bound is not None and float(torch.as_tensor(bound).max()) == 6
    assert not asked(hard, [images(100)], max_drop=0.5 if changed_anyway else 0.0)


def test_one_side_set_by_hand_stays_and_the_other_does_not():
    hard, data = fitact_fx.harden(net(nn.Tanh), "neuron"), [images(300)]
    fitact_fx.calibrate(hard, data)
    ((name, (_, upper)),) = fitact_fx.bounds(hard).items()
    fitact_fx.set_bounds(hard, {name: (-1.0, upper)})
    assert asked(hard, data, max_drop=0.0) == [by_hand(net(nn.Tanh), data, ["upper"])]
    fitact_fx.set_bounds(hard, {name: (upper - 0.01, upper)})
    assert len(asked(hard, data, max_drop=0.0)) == 1, "what is taken back stops at the other side"


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
def test_bounds_in_fewer_bits_are_asked_too(stored):
    hard, data = fitact_fx.harden(net(), "neuron"), [images(100)]
    fitact_fx.calibrate(hard, data)
    fitact_fx.store_bounds(hard, stored)
    assert len(asked(hard, data)) == 1


def test_batches_may_be_others_than_those_of_the_calibration():
    hard = fitact_fx.harden(net(), "neuron")
    fitact_fx.calibrate(hard, list(images(100).split(7)))
    assert asked(hard, [images(100)]) == [by_hand(net(), [images(100)])]
    shuffled = DataLoader(images(100), 16, shuffle=True)
    assert asked(hard, shuffled) == [by_hand(net(), [images(100)])]


def test_places_that_mean_nothing_are_no_answers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(8, 256, 1), nn.ReLU(), nn.Conv1d(256, 10, 1)).eval()
    inputs = torch.stack([images(100), torch.zeros(100, 8)], 2)  # at the second place, nothing changes
    labels = torch.randint(0, 10, (100, 2))
    labels[:, 1] = IGNORED
    hard = fitact_fx.harden(model, "neuron")
    fitact_fx.calibrate(hard, [inputs])
    expected = by_hand(model, [inputs], of=lambda x: x[:, :, :1])
    assert expected[0] > 1
    assert asked(hard, [(inputs, labels)], max_drop=0.0) == [expected]
    assert asked(hard, [inputs], max_drop=0.0) != [expected], "half of the places are right"


def test_after_an_error_bounds_are_what_they_were(monkeypatch):
    hard, data = fitact_fx.harden(net(), "neuron"), [images(100)]
    fitact_fx.calibrate(hard, data)
    before = state_of(hard)
    monkeypatch.setattr(new_samples, "costs_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        warn_of_new_samples(hard, Holdout.of(data, 0.2), 0.01)
    assert same(before, state_of(hard))


def test_so_few_changes_that_chance_makes_them_are_not_told():
    hard = fitact_fx.harden(net(), "neuron")
    fitact_fx.calibrate(hard, [images(2_000)])
    changed, samples = by_hand(net(), [images(2_000)])
    assert changed > 0
    assert asked(hard, [images(2_000)], max_drop=0.0) == [(changed, samples)]
    assert not asked(hard, [images(2_000)], max_drop=changed / samples)
    assert not asked(hard, [images(2_000)], max_drop=0.9 * changed / samples)


class Rare(nn.Module):
    """A site that a batch reaches only with a great value in it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.often = nn.Sequential(nn.Linear(8, 64), nn.ReLU())
        self.rare = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.out = nn.Linear(64, 10)

    def forward(self, x):
        x, rarely = self.often(x), float(x[:, 0].max()) > 100
        return self.out(self.rare(x) if rarely else x)


@pytest.mark.filterwarnings("ignore::fitact_fx.UnprotectedWarning")
@pytest.mark.parametrize("seed", range(4))
def test_a_site_that_one_part_does_not_reach_is_left_alone(seed):
    rows = images(40, seed)
    rows[0, 0] = 200  # held out under some seeds, and not under others
    hard = fitact_fx.harden(Rare().eval(), "neuron", example_inputs=(rows,), frontend="partial")
    data = [row[None] for row in rows]
    fitact_fx.calibrate(hard, data)
    held_out = any(batch.args[0].max() > 100 for batch in Holdout.of(data, 0.2).held_out_batches())
    assert asked(hard, data, max_drop=0.0) or not held_out, "the site before it has seen 200 in that sample alone"


@pytest.mark.parametrize(("granularity", "passes"), [("neuron", 1 + 3), ("layer", 1)])
def test_where_each_site_has_one_bound_the_data_are_not_gone_through(granularity, passes):
    hard = fitact_fx.harden(net(), granularity)
    fitact_fx.calibrate(hard, [images(2_000)])
    data = Counting([images(2_000)])
    asked(hard, data, max_drop=0.5)
    assert data.passes == passes


@pytest.mark.filterwarnings("ignore::fitact_fx.CostlyWarning")
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_to_ask_changes_no_bound(scheme, monkeypatch):
    with_it = fitact_fx.bounds(post_trained(scheme, "neuron", [images(100)]))
    for module in (learning, progression, searching):
        monkeypatch.setattr(module, "warn_of_new_samples", lambda *_: None)
    without = fitact_fx.bounds(post_trained(scheme, "neuron", [images(100)]))
    assert all(torch.equal(with_it[name][1], without[name][1]) for name in with_it | without)
