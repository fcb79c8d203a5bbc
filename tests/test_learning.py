"""Learning bounds: what it must reach, and what it must leave alone."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from counted_data import Counting
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fitact_fx
from fitact_fx.batches import as_batches
from fitact_fx.errors import CalibrationError, CostlyWarning, RecipeError, SiteError
from fitact_fx.holdout import Holdout
from fitact_fx.learning import Learning
from fitact_fx.losses import share_moved
from fitact_fx.policies import Bounds, Smooth
from fitact_fx.progression import Progressive
from fitact_fx.schemes.fitact import FitAct
from fitact_fx.schemes.proact import ProAct
from fitact_fx.schemes.ranger import Ranger

QUICK = FitAct(learning=Learning(steps=20))


class SmallNet(nn.Module):
    def __init__(self, activation=F.relu):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.linear = nn.Linear(6 * 16, 3)
        self.activation = activation

    def forward(self, x):
        return self.linear(self.activation(self.norm(self.conv(x))).flatten(1))


def problem(count=192, seed=0):
    """Images (count, 1, 4, 4) with the brightest of three bands as their class."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 4, 4, generator=generator)
    return x, x[:, 0, :3].sum(2).argmax(1)


def trained(activation=F.relu):
    torch.manual_seed(0)
    model = SmallNet(activation)
    x, y = problem(512, seed=1)
    adam = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        adam.zero_grad()
        F.cross_entropy(model(x), y).backward()
        adam.step()
    adam.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return trained()


def in_batches(x, y=None, size=32):
    return list(x.split(size)) if y is None else list(zip(x.split(size), y.split(size), strict=True))


def calibrated(model, data, scheme=QUICK, **options):
    hard = fitact_fx.harden(model, scheme=scheme, **options)
    fitact_fx.calibrate(hard, data)
    return hard


def accuracy(network, x, y):
    with torch.no_grad():
        return (network(x).argmax(1) == y).float().mean().item()


def held_out_part(data, share=0.2):
    return list(Holdout.of(data, share).held_out_batches())


def test_learning_tightens_bounds_and_the_record_says_what_it_did(model):
    data = in_batches(*problem())
    hard = calibrated(model, data)
    before = fitact_fx.bounds(hard)["relu"][1]
    record = fitact_fx.post_train(hard, data)
    after = fitact_fx.bounds(hard)["relu"][1]
    assert after.mean() < before.mean()
    assert record.mean_bound_before == pytest.approx(before.mean().item())
    assert record.mean_bound_after == pytest.approx(after.mean().item())
    assert record.steps == len(record.losses) == 20
    learned = 192 - record.held_out
    assert 19 * 20 / learned < record.epochs < 20 * 32 / learned, "20 steps over batches of 32 less what is held out"
    assert all(math.isfinite(loss) for loss in record.losses)
    assert record.losses[-1] < record.losses[0]


@pytest.mark.parametrize("max_drop", [0.0, 0.01, 0.05])
def test_bounds_that_break_the_limit_are_never_returned(model, max_drop):
    x, y = problem()
    data = in_batches(x, y)
    greedy = FitAct(learning=Learning(steps=30, learning_rate=0.1, tightening=50.0, distortion=math.inf))
    hard = calibrated(model, data, greedy)
    record = fitact_fx.post_train(hard, data, max_drop=max_drop)
    part = held_out_part(data)
    held_x = torch.cat([batch.args[0] for batch in part])
    held_y = torch.cat([batch.targets for batch in part])
    drop = accuracy(model, held_x, held_y) - accuracy(hard, held_x, held_y)
    assert drop <= max_drop + 1e-9
    assert record.held_out == len(held_x)
    assert record.drop == pytest.approx(drop, abs=1e-6)
    assert record.clean_accuracy == pytest.approx(accuracy(model, held_x, held_y), abs=1e-6)
    assert record.kept < 1.0, "this learning is greedy enough that the limit must have held it back"


def distortion_by_numpy(hard, model, x):
    """The mean square between the outputs, over the variance of the model's own around each class's mean; 1 at most."""
    with torch.no_grad():
        clean, bounded = (network(x).double().numpy() for network in (model, hard))
    return np.minimum(((bounded - clean) ** 2).mean(1) / clean.var(axis=0).mean(), 1).mean()


@pytest.mark.parametrize("distortion", [0.03, 0.1, 0.3])
def test_bounds_that_move_the_outputs_farther_than_the_limit_are_never_returned(model, distortion):
    data = in_batches(*problem())
    greedy = FitAct(learning=Learning(steps=30, learning_rate=0.1, tightening=50.0, distortion=distortion))
    hard = calibrated(model, data, greedy)
    record = fitact_fx.post_train(hard, data, max_drop=0.5)
    moved = distortion_by_numpy(hard, model, torch.cat([batch.args[0] for batch in held_out_part(data)]))
    assert moved <= distortion
    assert record.distortion == pytest.approx(moved, rel=1e-3, abs=1e-12)
    assert 0.0 < record.kept < 1.0, "the accuracy alone would have let them go all the way"


@pytest.mark.parametrize(("distortion", "passes"), [(math.inf, 1), (0.015, 6)])
def test_each_share_of_the_way_takes_one_pass_over_the_data(model, distortion, passes):
    batches = in_batches(*problem())
    data = Counting(batches)
    hard = calibrated(model, batches, FitAct(learning=Learning(steps=30, learning_rate=0.05, distortion=distortion)))
    fitact_fx.post_train(hard, data, max_drop=0.9)
    own = 3  # what either part reaches, and what it costs: see fitact_fx.new_samples
    assert data.passes == 1 + 5 + passes + own, "one to split, five to learn from, and one for each share tried"


def learned_from_few(model, **options):
    """Bounds that were calibrated on a quarter of the data, and the record of learning from all of it."""
    data = in_batches(*problem())
    hard = calibrated(model, data[:1], FitAct(learning=Learning(steps=30, learning_rate=0.1, **options)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        record = fitact_fx.post_train(hard, data, max_drop=0.9)
    assert all(each.category is CostlyWarning and each.filename == __file__ for each in caught)
    return hard, record, [str(each.message) for each in caught]


def test_a_limit_that_the_calibrated_bounds_exceed_leaves_these_and_says_so(model):
    hard, record, told = learned_from_few(model)
    assert record.kept == 0
    assert torch.equal(
        fitact_fx.bounds(hard)["relu"][1], fitact_fx.bounds(calibrated(model, problem()[0][:32].split(32)))["relu"][1]
    )
    assert record.distortion > Learning().distortion
    assert re.fullmatch(
        rf"nothing that was learned is kept: 6 % of the way, bounds move the outputs on {record.held_out} held-out "
        rf"samples by 0\.\d+ \(the calibrated ones by {record.distortion:.4f}\), more than "
        r"Learning\(distortion=0\.0082\) allows;\n"
        r"  calibrate with more data, or allow more of it \(infinity is no limit\)",
        told[0],
    )
    assert "followed 0 % of the way" in str(record)


def test_infinity_is_no_limit_on_outputs(model):
    _, record, told = learned_from_few(model, distortion=math.inf)
    assert (record.kept, told) == (1.0, [])
    assert "followed 100 % of the way" in str(record)


def test_bounds_that_no_step_moves_are_no_learning_that_is_lost(model):
    _, record, told = learned_from_few(model, tightening=0.0, distillation=0.0, labels=0.0)
    assert (record.kept, told) == (0.0, [])


def test_harden_tells_its_caller_too_that_nothing_is_kept(model):
    with pytest.warns(CostlyWarning, match="nothing that was learned is kept") as caught:
        fitact_fx.harden(model, scheme=FitAct(learning=Learning(steps=5, distortion=0.0)), data=in_batches(*problem()))
    assert [each.filename for each in caught] == [__file__]


def test_the_limit_on_outputs_needs_no_more_than_it_takes(model):
    data = in_batches(*problem())
    x = torch.cat([batch.args[0] for batch in held_out_part(data)])
    hard = calibrated(model, data, FitAct(learning=Learning(steps=30, learning_rate=0.05, distortion=0.015)))
    record = fitact_fx.post_train(hard, data, max_drop=0.5)
    assert 0 < record.kept < 1
    further = calibrated(model, data)
    start, learned = (fitact_fx.bounds(each)["relu"][1] for each in (further, hard))
    theta = torch.where(start > 0, (learned / start).log() / record.kept, 0.0)
    fitact_fx.set_bounds(further, {"relu": (None, start * torch.exp(theta * (record.kept + 1 / 16)))})
    assert distortion_by_numpy(further, model, x) > 0.015, "a sixteenth more of the way is too far"


def test_calibrated_bounds_that_cost_too_much_already_are_refused_and_stay(model):
    data = in_batches(*problem())
    hard = fitact_fx.harden(model, scheme=QUICK)
    fitact_fx.set_bounds(hard, {"*": (None, 1e-3)})
    with pytest.raises(
        CalibrationError, match=r"calibrated bounds themselves cost .* points .* max_drop allows \(0.50\)"
    ):
        fitact_fx.post_train(hard, data)
    assert fitact_fx.bounds(hard)["relu"][1].item() == pytest.approx(1e-3)


def test_without_labels_the_clean_model_is_the_target(model):
    x, _ = problem()
    hard = calibrated(model, in_batches(x))
    record = fitact_fx.post_train(hard, in_batches(x), max_drop=0.02)
    assert record.clean_accuracy == 1.0, "the clean model always agrees with itself"
    with torch.no_grad():
        agreement = (model(x).argmax(1) == hard(x).argmax(1)).float().mean().item()
    assert agreement > 0.95


def test_nothing_but_bounds_changes():
    model = trained()
    model.train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    x, y = problem()
    data = in_batches(x, y)
    hard = calibrated(model, data)
    hard.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = {name: value.clone() for name, value in hard.state_dict().items() if "bound" not in name}
    state = torch.get_rng_state()
    fitact_fx.post_train(hard, data, max_drop=0.05)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, value in frozen.items():
        assert torch.equal(hard.state_dict()[name], value), name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.conv.weight.requires_grad
    assert model.linear.weight.requires_grad
    assert model.training
    assert not model.norm.training
    assert all(module.training for module in hard.modules())
    upper = fitact_fx.bounds(hard)["relu"][1]
    assert not upper.requires_grad


def test_a_shuffling_loader_draws_nothing_from_the_global_generator(model):
    loader = DataLoader(TensorDataset(*problem()), batch_size=32, shuffle=True)
    hard = calibrated(model, loader)
    state = torch.get_rng_state()
    fitact_fx.post_train(hard, loader, max_drop=0.05)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_learns_the_same_bounds_from_a_shuffling_loader(model):
    def learned(seed):
        loader = DataLoader(TensorDataset(*problem()), batch_size=32, shuffle=True)
        hard = calibrated(model, loader)
        fitact_fx.post_train(hard, loader, max_drop=0.05, seed=seed)
        return fitact_fx.bounds(hard)["relu"][1]

    assert torch.equal(learned(3), learned(3))
    assert not torch.equal(learned(3), learned(4))


def test_the_holdout_is_the_same_in_any_order_and_any_batches():
    x, y = problem(100)

    def held(order, size):
        data = in_batches(x[order], y[order], size)
        rows = torch.cat([batch.args[0] for batch in held_out_part(data)])
        return {row.numpy().tobytes() for row in rows}

    straight = held(torch.arange(100), 32)
    shuffled = held(torch.randperm(100, generator=torch.Generator().manual_seed(5)), 7)
    assert straight == shuffled
    assert len(straight) == 20


def test_the_two_parts_share_no_sample_and_lose_none():
    x, y = problem(90)
    doubled = in_batches(torch.cat([x, x]), torch.cat([y, y]), 16)
    holdout = Holdout.of(doubled, 0.2)
    held = [row.numpy().tobytes() for batch in holdout.held_out_batches() for row in batch.args[0]]
    learned = []
    for batch in holdout.learning_batches(size=5):
        assert len(batch.args[0]) <= 5
        learned += [row.numpy().tobytes() for row in batch.args[0]]
        if len(learned) + len(held) >= 180:
            break
    assert not set(held) & set(learned)
    assert set(held) | set(learned) == {row.numpy().tobytes() for row in x}


def test_too_few_different_samples_are_refused(model):
    x = torch.rand(1, 1, 4, 4).expand(8, 1, 4, 4)
    hard = calibrated(model, [x])
    with pytest.raises(CalibrationError, match="of the 8 samples in the data, 1 differ: too few"):
        fitact_fx.post_train(hard, [x])


def test_an_interrupted_learning_leaves_the_calibrated_bounds(model):
    data = in_batches(*problem())
    hard = calibrated(model, data)
    before = fitact_fx.bounds(hard)["relu"][1]

    class Interrupted:
        passes = 0

        def __iter__(self):
            self.passes += 1
            for number, batch in enumerate(data):
                if self.passes == 2 and number == 3:
                    raise KeyboardInterrupt
                yield batch

    with pytest.raises(KeyboardInterrupt):
        fitact_fx.post_train(hard, Interrupted())
    assert torch.equal(fitact_fx.bounds(hard)["relu"][1], before)
    assert type(next(iter(fitact_fx.bounds(hard).values()))[1]) is torch.Tensor
    with torch.no_grad():
        assert torch.equal(hard(data[0][0]), model(data[0][0])), "the hard policy is back in place"


def test_two_sided_activations_learn_both_sides():
    model = trained(F.gelu)
    data = in_batches(*problem())
    hard = calibrated(model, data)
    lower, upper = fitact_fx.bounds(hard)["gelu"]
    fitact_fx.post_train(hard, data, max_drop=0.05)
    new_lower, new_upper = fitact_fx.bounds(hard)["gelu"]
    assert new_upper[upper > 0].mean() < upper[upper > 0].mean()
    assert new_lower[lower < 0].mean() > lower[lower < 0].mean()
    assert torch.equal(new_lower[lower >= 0], lower[lower >= 0]), "shrinking these would loosen them"


def test_bounds_at_zero_and_infinity_stay_what_they_are(model):
    data = in_batches(*problem())
    hard = calibrated(model, data, FitAct(learning=Learning(steps=20, distortion=math.inf)))
    upper = fitact_fx.bounds(hard)["relu"][1]
    upper[0, 0], upper[0, 1] = 0.0, torch.inf
    fitact_fx.set_bounds(hard, {"relu": (None, upper)})
    fitact_fx.post_train(hard, data, max_drop=0.99)
    learned = fitact_fx.bounds(hard)["relu"][1]
    assert torch.equal(learned[0, 0], torch.zeros(4, 4))
    assert torch.equal(learned[0, 1], torch.full((4, 4), torch.inf))
    assert learned.isnan().sum() == 0


@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
def test_every_granularity_learns(model, granularity):
    data = in_batches(*problem())
    hard = calibrated(model, data, granularity=granularity)
    before = fitact_fx.bounds(hard)["relu"][1]
    fitact_fx.post_train(hard, data, max_drop=0.05)
    after = fitact_fx.bounds(hard)["relu"][1]
    assert after.shape == before.shape
    assert after.mean() < before.mean()


def test_harden_with_data_calibrates_and_learns(model):
    data = in_batches(*problem())
    at_once = fitact_fx.harden(model, scheme=QUICK, data=data, max_drop=0.02, seed=1)
    by_hand = calibrated(model, data)
    fitact_fx.post_train(by_hand, data, max_drop=0.02, seed=1)
    assert torch.equal(fitact_fx.bounds(at_once)["relu"][1], fitact_fx.bounds(by_hand)["relu"][1])


def test_learning_before_calibration_is_refused(model):
    with pytest.raises(SiteError, match=r"bounds of relu are not set;\n  run fitact_fx.calibrate before post_train"):
        fitact_fx.post_train(fitact_fx.harden(model), in_batches(*problem()))


def test_a_scheme_that_learns_nothing_says_so(model):
    hard = calibrated(model, in_batches(*problem()), Ranger())
    with pytest.raises(RecipeError, match="ranger"):
        fitact_fx.post_train(hard, in_batches(*problem()))


def test_the_smooth_form_is_the_published_one_with_a_relative_slope():
    values = np.linspace(-1, 12, 400).astype(np.float32)
    bound, slope = 4.0, 20.0
    k = slope / bound
    published = np.maximum(0, values - values / (1 + np.exp(-k * (values.astype(np.float64) - bound))))
    ours = Smooth(slope)(torch.from_numpy(values).relu(), Bounds(None, torch.tensor(bound), 0.0, bound))
    np.testing.assert_allclose(ours.numpy(), published, atol=1e-5)


def test_the_gradient_of_the_smooth_form_is_its_slope_by_finite_differences():
    values = torch.linspace(0.1, 6, 50, dtype=torch.float64)
    bound = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    scale = 4.0  # the slope is relative to the bound as it stands, which does not move with the gradient

    def total(at):
        return (values * torch.sigmoid((at - values) * 20.0 / scale)).sum()

    Smooth(20.0)(values, Bounds(None, bound, 0.0, scale)).sum().backward()
    numeric = (total(4.0 + 1e-6) - total(4.0 - 1e-6)) / 2e-6
    assert bound.grad.item() == pytest.approx(numeric.item(), rel=1e-6)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_the_smooth_form_turns_what_is_not_finite_into_zero_with_a_finite_gradient(bad):
    values = torch.tensor([1.0, bad, 2.0], requires_grad=True)
    upper = torch.tensor(3.0, requires_grad=True)
    result = Smooth()(values, Bounds(torch.tensor(-1.0), upper, -math.inf, 3.0))
    assert result[1] == 0
    result.sum().backward()
    assert values.grad.isfinite().all()
    assert upper.grad.isfinite()


def test_batches_without_labels_and_with_none_are_the_same():
    x, _ = problem(8)
    assert next(as_batches([(x, None)])).targets is None
    assert next(as_batches([x])).targets is None


def test_a_learned_model_is_the_same_after_saving_loading_and_copying_its_state(model, tmp_path):
    x, y = problem()
    data = in_batches(x, y)
    hard = calibrated(model, data)
    fitact_fx.post_train(hard, data, max_drop=0.05)
    fitact_fx.save(hard, tmp_path / "bounds")
    loaded = fitact_fx.load(tmp_path / "bounds", model)
    restored, by_hand = fitact_fx.harden(model), fitact_fx.harden(model)
    restored.load_state_dict(hard.state_dict())
    fitact_fx.set_bounds(by_hand, fitact_fx.bounds(hard))
    values = x * 1.02  # some of these lie about the bounds, where the slack decides
    with torch.no_grad():
        for twin in (loaded, restored, by_hand):
            assert torch.equal(twin(values), hard(values))


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (lambda y: y + 2, r"label \d is none of 3 classes"),
        (lambda y: F.one_hot(y, 3), r"labels have shape \(\d+, 3\) and type torch.int64 for class scores of shape"),
        (lambda y: y.float(), r"type torch.float32 for class scores .*\n  give one whole number for each, in shape"),
    ],
)
def test_labels_that_are_no_classes_are_refused(model, labels, text):
    x, y = problem()
    hard = calibrated(model, in_batches(x))
    before = fitact_fx.bounds(hard)["relu"][1]
    with pytest.raises(CalibrationError, match=text):
        fitact_fx.post_train(hard, in_batches(x, labels(y)))
    assert torch.equal(fitact_fx.bounds(hard)["relu"][1], before)


def test_data_that_is_new_in_every_pass_is_refused_when_nothing_is_held_out(model):
    class Augmented:
        passes = 0

        def __iter__(self):
            self.passes += 1
            # Only the first pass holds what was counted; later samples all fall on the learning side.
            yield problem(32)[0] if self.passes == 1 else torch.full((8, 1, 4, 4), 0.25) * self.passes

    hard = calibrated(model, in_batches(problem()[0]))
    with pytest.raises(CalibrationError, match=r"same in every pass \(no random augmentation\)"):
        fitact_fx.post_train(hard, Augmented())


def test_bounds_that_are_all_infinite_leave_nothing_to_learn(model):
    hard = fitact_fx.harden(model)
    fitact_fx.set_bounds(hard, {"*": (None, math.inf)})
    with pytest.raises(CalibrationError, match="no site of this model has a finite bound to learn"):
        fitact_fx.post_train(hard, in_batches(*problem()))


@pytest.mark.parametrize("scheme", [QUICK, ProAct(learning=Progressive(rounds=1, steps=2))])
@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (lambda x: x, r"batch 2 has no labels, and those before it have some;\n  give labels with every batch or with"),
        (lambda x: (x, torch.full((len(x),), 7)), r"batch 2: label 7 is none of 3 classes;\n  check the labels"),
        (
            lambda x: (x, torch.rand_like(x)),
            r"batch 2 .* in the shape of the inputs.*;\n  give two inputs as \(\(first",
        ),
        (
            lambda x: (x, torch.zeros(len(x), 2).long()),
            r"batch 2: the labels have shape \(\d+, 2\) and type torch.int64",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused_by_the_number_of_their_batch(model, scheme, broken, text):
    x, y = problem()
    data = in_batches(x, y)
    hard = calibrated(model, data, scheme)
    before = fitact_fx.bounds(hard)["relu"][1]
    with pytest.raises(CalibrationError, match=text):
        fitact_fx.post_train(hard, [*data[:2], broken(data[2][0]), *data[3:]], max_drop=0.9)
    assert torch.equal(fitact_fx.bounds(hard)["relu"][1], before)


def test_labels_in_a_later_batch_alone_are_refused(model):
    x, y = problem()
    data = in_batches(x)
    hard = calibrated(model, data)
    with pytest.raises(CalibrationError, match="batch 1 has labels, and those before it have none"):
        fitact_fx.post_train(hard, [data[0], (data[1], y[32:64]), *data[2:]])


def test_labels_for_a_model_with_one_score_are_refused_with_the_remedy():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    data = in_batches(*problem())
    hard = calibrated(model, data)
    with pytest.raises(
        CalibrationError, match=r"none of 1 classes;\n  wrap the model in a module that returns a score"
    ):
        fitact_fx.post_train(hard, data)


def test_labels_for_a_model_without_class_scores_are_refused():
    class Value(nn.Module):
        def forward(self, x):
            return F.relu(x).flatten(1).sum(1)

    data = in_batches(*problem())
    hard = calibrated(Value(), data)
    with pytest.raises(
        CalibrationError, match=r"holds no class scores of shape \(N, classes, ...\);\n  wrap the model"
    ):
        fitact_fx.post_train(hard, data)


def test_calibration_takes_data_with_labels_and_ignores_them(model):
    x, y = problem()
    with_labels, without = calibrated(model, in_batches(x, y + 50)), calibrated(model, in_batches(x))
    assert torch.equal(fitact_fx.bounds(with_labels)["relu"][1], fitact_fx.bounds(without)["relu"][1])


def test_labels_alone_need_labels(model):
    x, y = problem()
    alone = FitAct(learning=Learning(steps=5, distillation=0.0, labels=1.0, distortion=math.inf))
    hard = calibrated(model, in_batches(x), alone)
    with pytest.raises(
        CalibrationError, match="distillation=0 nothing but labels is learned from, and the data has none"
    ):
        fitact_fx.post_train(hard, in_batches(x))
    assert fitact_fx.post_train(hard, in_batches(x, y), max_drop=0.1).steps == 5


def test_learning_under_drawn_faults_is_seeded_moves_other_bounds_and_leaves_the_weights(model):
    data = in_batches(*problem())
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def learned(rate, seed=0):
        hard = calibrated(model, data, FitAct(learning=Learning(steps=8, fault_rate=rate)))
        record = fitact_fx.post_train(hard, data, max_drop=0.5, seed=seed)
        assert all(math.isfinite(loss) for loss in record.losses)
        return fitact_fx.bounds(hard)["relu"][1]

    under = learned(1e-3)
    assert torch.equal(under, learned(1e-3))
    assert not torch.equal(under, learned(0.0)), "the faults have their say"
    assert under.isfinite().all()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_no_loss_under_faults_exceeds_one_whatever_the_scores_hold():
    scores = torch.tensor([[math.nan, math.inf, -math.inf], [3e38, -3e38, 0.0]], requires_grad=True)
    moved = share_moved(scores, torch.tensor([[9.0, -9.0, 0.0], [-9.0, 9.0, 0.0]]))
    assert 0 <= moved.item() <= 1
    assert torch.autograd.grad(moved, scores)[0].isfinite().all()
