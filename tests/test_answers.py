"""Where answers are found, what counts as right where labels are missing, and that no held-out sample is left out."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fitact_fx
from fitact_fx.answers import IGNORED, Tally, logits_of, right_classes
from fitact_fx.budget import Search
from fitact_fx.errors import CalibrationError
from fitact_fx.holdout import Holdout
from fitact_fx.learning import Learning
from fitact_fx.progression import Progressive
from fitact_fx.schemes.clip_act import ClipAct
from fitact_fx.schemes.fitact import FitAct
from fitact_fx.schemes.proact import ProAct

NONE = -100
X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
GREEDY = [
    FitAct(learning=Learning(steps=30, learning_rate=0.2, tightening=50.0, distortion=float("inf"))),
    ProAct(learning=Progressive(rounds=1, steps=30, learning_rate=0.2, tightening=50.0), tolerance=0.9),
    ClipAct(search=Search(rates=(1e-3, 1e-2), draws=2, images=32, parts=2, rounds=1)),
]
ALL_SCHEMES = pytest.mark.parametrize("scheme", GREEDY, ids=lambda scheme: scheme.name)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)).eval()


def learned(scheme: Any, targets: Tensor | None, **options: float) -> tuple[nn.Module, Any]:
    data = [X] if targets is None else [(X, targets)]
    hard = fitact_fx.harden(network(), scheme=scheme)
    fitact_fx.calibrate(hard, data)
    return hard, fitact_fx.post_train(hard, data, **options)


def answers(model: nn.Module, inputs: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(inputs).numpy().argmax(1)


def one_by_one(labels: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """The rule, spelled out: a sample whose labels are all -100 has the clean answers."""
    return np.array([own if (given == NONE).all() else given for given, own in zip(labels, clean, strict=True)])


@pytest.mark.parametrize(
    "labels",
    [
        [2, NONE, 0, NONE],
        [[2, NONE, 0], [NONE, NONE, NONE], [1, 1, 1], [NONE, NONE, 2]],
        [[[2, NONE], [NONE, 0]], [[NONE] * 2] * 2, [[NONE] * 2] * 2, [[0, 1], [2, NONE]]],
    ],
    ids=["one a sample", "sequences", "maps"],
)
def test_a_sample_without_any_label_has_the_clean_answers_and_padding_stays_padding(labels: Any) -> None:
    targets = torch.tensor(labels)
    scores = torch.randn(4, 3, *targets.shape[1:], generator=torch.Generator().manual_seed(1))
    found = right_classes(targets, scores, lambda: scores.argmax(1))
    np.testing.assert_array_equal(found.numpy(), one_by_one(targets.numpy(), scores.numpy().argmax(1)))


@ALL_SCHEMES
def test_samples_without_a_label_count_in_the_clean_drop(scheme: Any) -> None:
    clean = torch.from_numpy(answers(network(), X))
    few = torch.where(torch.arange(200) % 20 == 0, (clean + torch.arange(200) % 3) % 5, NONE)
    hard, record = learned(scheme, few, max_drop=0.1)
    held_out = torch.cat([batch.args[0] for batch in Holdout.of([X], 0.2).held_out_batches()])
    labels = torch.cat([batch.targets for batch in Holdout.of([(X, few)], 0.2).held_out_batches()])
    right = one_by_one(labels.numpy(), answers(network(), held_out))
    accuracy, before = ((answers(each, held_out) == right).mean() for each in (hard, network()))
    assert record.held_out == len(held_out) == 40
    assert record.clean_accuracy == pytest.approx(before)
    assert record.drop == pytest.approx(before - accuracy)
    assert record.drop <= 0.1 + 1e-9


@ALL_SCHEMES
def test_labels_that_are_all_missing_are_as_good_as_none_at_all(scheme: Any) -> None:
    hard, record = learned(scheme, torch.full((200,), NONE), max_drop=0.1)
    wanted, same = learned(scheme, None, max_drop=0.1)
    assert (record.drop, record.clean_accuracy, record.held_out) == (same.drop, 1.0, same.held_out)
    for one, other in zip(fitact_fx.bounds(hard).values(), fitact_fx.bounds(wanted).values(), strict=True):
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("missing", [torch.full((200,), NONE), None], ids=["all -100", "none"])
def test_nothing_but_labels_cannot_be_learned_from_where_all_are_missing(missing: Tensor | None) -> None:
    with pytest.raises(CalibrationError, match="nothing but labels is learned from, and the data has none"):
        learned(FitAct(learning=Learning(steps=2, distillation=0.0)), missing)


@ALL_SCHEMES
def test_a_label_that_is_no_class_is_refused_with_the_batch_it_came_in(scheme: Any) -> None:
    targets = torch.zeros(200, dtype=torch.long)
    targets[100:] = 7
    data = [*zip(X.split(50), targets.split(50), strict=True)]
    hard = fitact_fx.harden(network(), scheme=scheme)
    fitact_fx.calibrate(hard, data)
    with pytest.raises(CalibrationError, match=r"^batch [23]: label 7 is none of 5 classes"):
        fitact_fx.post_train(hard, data)


@ALL_SCHEMES
def test_a_handful_of_samples_is_too_little_to_learn_from(scheme: Any) -> None:
    hard = fitact_fx.harden(network(), scheme=scheme)
    fitact_fx.calibrate(hard, [X])
    with pytest.raises(
        CalibrationError, match=r"^15 samples are too few to learn from, beside 4 to check on;\n  pass 20"
    ):
        fitact_fx.post_train(hard, [X[:19]])
    assert fitact_fx.post_train(hard, [X[:20]], max_drop=0.99).held_out == 4


def test_class_scores_are_found_in_the_usual_outputs() -> None:
    extra = torch.zeros(4, 1)
    outputs = [X, (X, extra), [X], {"logits": X, "extra": extra}, {"out": X}, SimpleNamespace(logits=X)]
    assert all(logits_of(output) is X for output in outputs)


@pytest.mark.parametrize("output", [torch.zeros(3), (), "scores", (None, X)])
def test_an_output_without_class_scores_is_refused(output: object) -> None:
    with pytest.raises(CalibrationError, match=r"no class scores of shape \(N, classes, ...\);\n  wrap the model"):
        logits_of(output)


def test_scores_that_are_no_numbers_answer_nothing_right() -> None:
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[nan, 0.0], [0.0, inf], [2.0, 1.0], [-inf, 1.0], [0.0, 1.0]])
    assert Tally.of(scores, torch.tensor([0, 1, 0, 1, IGNORED])) == Tally(right=2, count=4)


def test_there_is_no_share_of_right_answers_where_there_was_no_sample() -> None:
    assert (Tally(1, 2) + Tally(2, 2)).share == 0.75
    with pytest.raises(CalibrationError, match=r"none of the samples .* came in this pass .*;\n  pass data whose"):
        _ = Tally().share
