"""ProAct: which sites get which bounds, the way from the back, and what is rolled back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fitact_fx
from fitact_fx.bounded import bounded_sites
from fitact_fx.errors import CalibrationError
from fitact_fx.holdout import Holdout
from fitact_fx.policies import Smooth, Zero
from fitact_fx.progression import Progressive
from fitact_fx.schemes.proact import ProAct

GREEDY = Progressive(rounds=2, steps=12, learning_rate=0.1, tightening=20.0)


class Three(nn.Module):
    """Two layers that have room to spare, and between them one whose greatest value decides the class.

    Class 1 is a first input above 4: only its greatest values, up to 5, pass `edge`, and `spare` carries
    a constant that nothing reads.
    """

    def __init__(self):
        super().__init__()
        self.first, self.edge, self.spare = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.first(x)
        peak = self.edge(x[:, :1])
        idle = self.spare(x[:, 1:])
        return torch.cat([torch.full_like(peak, 4.0), peak], 1) + 0.0 * idle.sum(1, keepdim=True)


def three(count=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 5 * torch.rand(count, 3, generator=generator)
    return x, (x[:, 0] > 4).long()


def in_batches(x, y=None, size=32):
    return list(x.split(size)) if y is None else list(zip(x.split(size), y.split(size), strict=True))


def hardened(model, data, learning=GREEDY, **options):
    hard = fitact_fx.harden(model, scheme=ProAct(learning=learning, **options))
    fitact_fx.calibrate(hard, data)
    return hard


@pytest.fixture(scope="module")
def conv():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    ).eval()


def images(count=96, seed=0):
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_only_the_last_site_has_a_bound_per_neuron_and_each_is_what_numpy_finds(conv):
    x = images()
    uppers = [upper for _, upper in fitact_fx.bounds(hardened(conv, in_batches(x))).values()]
    with torch.no_grad():
        first = conv[1](conv[0](x))
        last = conv[3](conv[2](first))
    assert uppers[0].shape == ()
    np.testing.assert_allclose(uppers[0].numpy(), first.numpy().max(), rtol=1e-6)
    assert uppers[1].shape == (1, 4, 4, 4)
    np.testing.assert_allclose(uppers[1].numpy(), last.numpy().max(0, keepdims=True), rtol=1e-5, atol=1e-6)


def test_logits_behind_the_last_activation_are_bounded_per_neuron_as_well(conv):
    hard = fitact_fx.harden(conv, scheme="proact", sites=("activations", "logits"))
    kinds = [site.spec.granularity.name for site in bounded_sites(hard).values()]
    assert kinds == ["layer", "neuron", "neuron"]


def test_a_site_whose_tightening_costs_accuracy_is_rolled_back_and_the_others_are_not():
    x, y = three()
    data = in_batches(x, y)
    hard = hardened(Three(), data, replace(GREEDY, easing=1.0))
    before = fitact_fx.bounds(hard)
    record = fitact_fx.post_train(hard, data, max_drop=0.01)
    after = fitact_fx.bounds(hard)
    stages = {stage.site: stage for stage in record.stages}
    # Whatever falls off the greatest values of `edge` turns class 1 into class 0: one in five samples.
    assert stages["edge"].rolled_back
    assert max(stages["edge"].tried) < 1 - 0.002
    assert torch.equal(after["edge"][1], before["edge"][1]), "to the bit"
    assert not stages["spare"].rolled_back
    assert (after["spare"][1] < before["spare"][1]).all()
    assert record.drop <= 0.002
    assert "1 of 3 sites tightened" in str(record), "`first` passes the same peak on"


def test_the_way_is_from_the_back_with_one_smooth_site_at_a_time(conv):
    x = images()
    hard = hardened(conv, in_batches(x), Progressive(rounds=1, steps=4, tightening=1.0), tolerance=0.5)
    sites = bounded_sites(hard)
    trained, others = [], []

    def watch(module, args, output):
        if isinstance(module.policy, Smooth):
            trained.append(module.site)
            others.append([other.policy for other in sites.values() if other is not module])

    handles = [site.register_forward_hook(watch) for site in sites.values()]
    record = fitact_fx.post_train(hard, in_batches(x), max_drop=0.5)
    for handle in handles:
        handle.remove()
    first, last = sites
    assert trained == [last] * 4 + [first] * 4
    assert all(policies == [Zero()] for policies in others)
    assert [stage.site for stage in record.stages] == [last, first]
    assert record.steps == 8


def test_bounds_elsewhere_do_not_move_while_one_site_is_trained(conv):
    x = images()
    hard = hardened(
        conv, in_batches(x), Progressive(rounds=1, steps=6, learning_rate=0.05, tightening=5.0), tolerance=0.9
    )
    first, last = bounded_sites(hard).values()
    seen = {first.site: [], last.site: []}

    def watch(module, args, output):
        other = last if module is first else first
        if isinstance(module.policy, Smooth):
            seen[module.site].append((module.upper.detach().clone(), other.upper.detach().clone()))

    handles = [site.register_forward_hook(watch) for site in (first, last)]
    fitact_fx.post_train(hard, in_batches(x), max_drop=0.9)
    for handle in handles:
        handle.remove()
    for site in (first, last):
        own, other = zip(*seen[site.site], strict=True)
        assert not torch.equal(own[0], own[-1]), "the trained one moves"
        assert all(torch.equal(one, other[0]) for one in other)
    assert torch.equal(seen[first.site][0][1], last.upper), "the last site stays at what it learned"


def test_a_round_that_is_rolled_back_is_followed_by_a_gentler_one():
    x, y = three()
    data = in_batches(x, y)
    hard = hardened(Three(), data, replace(GREEDY, rounds=3, easing=0.0))
    stages = {stage.site: stage for stage in fitact_fx.post_train(hard, data).stages}
    assert stages["edge"].held == (False, True, True)
    assert stages["edge"].tried[0] < 0.998 <= min(stages["edge"].tried[1:])


@pytest.mark.parametrize("max_drop", [0.0, 0.05])
def test_neither_the_tolerance_nor_max_drop_is_overstepped(max_drop):
    x, y = three()
    data = in_batches(x, y)
    hard = hardened(Three(), data, tolerance=0.2)
    record = fitact_fx.post_train(hard, data, max_drop=max_drop)
    held = list(Holdout.of(data, GREEDY.held_out).held_out_batches())
    held_x, held_y = torch.cat([b.args[0] for b in held]), torch.cat([b.targets for b in held])
    with torch.no_grad():
        drop = ((held_x[:, 0] > 4) == held_y).float().mean() - (hard(held_x).argmax(1) == held_y).float().mean()
    assert drop <= max_drop + 1e-6
    assert record.drop == pytest.approx(float(drop), abs=1e-6)
    assert record.held_out == len(held_x)


def test_the_same_seed_learns_the_same_bounds(conv):
    def learned(seed):
        loader = torch.utils.data.DataLoader(images(), batch_size=32, shuffle=True)
        hard = hardened(conv, loader, Progressive(rounds=1, steps=5), tolerance=0.5)
        fitact_fx.post_train(hard, loader, max_drop=0.5, seed=seed)
        return fitact_fx.bounds(hard)

    one, same, other = learned(3), learned(3), learned(4)
    assert all(torch.equal(one[name][1], same[name][1]) for name in one)
    assert any(not torch.equal(one[name][1], other[name][1]) for name in one)


def test_nothing_but_bounds_changes_and_an_error_restores_them(conv):
    data = in_batches(images())
    hard = hardened(conv, data)
    before, state = fitact_fx.bounds(hard), torch.get_rng_state()
    weights = {name: value.clone() for name, value in conv.state_dict().items()}

    class Interrupted:
        passes = 0

        def __iter__(self):
            self.passes += 1
            for number, batch in enumerate(data):
                if self.passes == 7 and number == 1:
                    raise KeyboardInterrupt
                yield batch

    with pytest.raises(KeyboardInterrupt):
        fitact_fx.post_train(hard, Interrupted(), max_drop=0.9)
    assert all(torch.equal(upper, before[name][1]) for name, (_, upper) in fitact_fx.bounds(hard).items())
    fitact_fx.post_train(hard, data, max_drop=0.9)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in conv.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in conv.parameters())


def test_distillation_is_the_cross_entropy_with_soft_targets_less_their_entropy():
    from fitact_fx.losses import divergence

    rng = np.random.default_rng(0)
    scores, clean = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))

    def softmax(values):
        return np.exp(values) / np.exp(values).sum(1, keepdims=True)

    p, q = softmax(clean / 2), softmax(scores / 2)
    wanted = 4 * ((-(p * np.log(q))).sum(1) - (-(p * np.log(p))).sum(1)).mean()
    assert divergence(torch.tensor(scores), torch.tensor(clean), 2.0).item() == pytest.approx(wanted)


def test_calibrated_bounds_that_cost_too_much_are_refused_and_stay():
    x, y = three()
    hard = hardened(Three(), in_batches(x, y))
    fitact_fx.set_bounds(hard, {"edge": (None, 1.0)})
    with pytest.raises(CalibrationError, match=r"themselves cost \d+\.\d+ points of clean accuracy on \d+ held-out"):
        fitact_fx.post_train(hard, in_batches(x, y))
    assert (fitact_fx.bounds(hard)["edge"][1] == 1.0).all()


def test_labels_alone_need_labels():
    x, _ = three()
    hard = hardened(Three(), in_batches(x), Progressive(distillation=0.0))
    with pytest.raises(CalibrationError, match=r"distillation=0 nothing but labels .* has none;\n  give batches of"):
        fitact_fx.post_train(hard, in_batches(x))


def test_the_scheme_is_saved_and_loaded_with_its_options(conv, tmp_path):
    hard = hardened(conv, in_batches(images()), Progressive(rounds=5, temperature=2.0), tolerance=0.01)
    fitact_fx.save(hard, tmp_path / "bounds")
    loaded = fitact_fx.load(tmp_path / "bounds", conv)
    assert loaded.meta["scheme"] == ProAct(tolerance=0.01, learning=Progressive(rounds=5, temperature=2.0))
    assert F.mse_loss(loaded(images()), hard(images())) == 0
