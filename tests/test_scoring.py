"""Accuracy, SDC, DUE and the user's metrics, against counts made one sample at a time."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from itertools import product
from math import inf, isfinite, isnan, nan
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fitact_fx.campaigns.samples import Samples
from fitact_fx.campaigns.scoring import Scores, Scoring, broken
from fitact_fx.errors import CampaignError


def read(sizes: list[int], targets: list[Any]) -> Samples:
    return Samples.read([(torch.zeros(size, 1), each) for size, each in zip(sizes, targets, strict=True)])


def new_damage(now: np.ndarray, before: np.ndarray) -> bool:
    """Whether any number is NaN or Inf, and is not that very NaN or Inf without faults."""
    return any(
        not isfinite(one) and not (one == other or (isnan(one) and isnan(other)))
        for one, other in zip(now.ravel().tolist(), before.ravel().tolist(), strict=True)
    )


def greatest(scores: list[float]) -> tuple[int, bool]:
    """The class with the greatest score, the first NaN before all, and whether its score is a number."""
    first = next((i for i, one in enumerate(scores) if isnan(one)), None)
    best = scores.index(max(scores)) if first is None else first
    return best, isfinite(scores[best])


def counted(clean: list[Tensor], faulty: list[Tensor], targets: list[Tensor | None]) -> tuple[Any, ...]:
    """(accuracy, sdc1, sdc5, due), sample by sample and pixel by pixel."""
    labelled = correct = right = sdc1 = sdc5 = due = samples = 0
    for batch, now_batch, labels in zip(clean, faulty, targets, strict=True):
        for number in range(len(batch)):
            before, now = batch[number].double().numpy(), now_batch[number].double().numpy()
            noticed = new_damage(now, before)
            samples, due = samples + 1, due + noticed
            for place in product(*map(range, before.shape[1:])):
                scores = [before[(c, *place)] for c in range(len(before))]
                answer, sure = greatest(scores)
                found, found_sure = greatest([now[(c, *place)] for c in range(len(now))])
                five = sorted(range(len(scores)), key=lambda c: -scores[c])[:5]
                label = None if labels is None else int(labels[(number, *place)])
                if label is not None and label != -100:
                    labelled += 1
                    correct += found == label and found_sure
                if label is None or (answer == label and sure):
                    right += 1
                    sdc1 += found != answer and not noticed
                    sdc5 += found not in five and not noticed
    return (
        correct / labelled if labelled else None,
        sdc1 / right if right else None,
        sdc5 / right if right else None,
        due / samples,
    )


def of(scores: Scores) -> tuple[Any, ...]:
    return scores.accuracy, scores.sdc1, scores.sdc5, scores.due


@pytest.mark.parametrize("classes", [2, 4, 5, 6, 12])
@pytest.mark.parametrize(
    ("pixels", "labelled"), [((), True), ((3,), True), ((2, 3), True), ((), False), ((2, 3), False)]
)
def test_scores_are_what_counting_one_by_one_gives(classes: int, pixels: tuple[int, ...], labelled: bool) -> None:
    random = torch.Generator().manual_seed(classes * 100 + len(pixels) * 10 + labelled)
    sizes, clean, faulty, targets = [7, 4], [], [], []
    for size in sizes:
        scores = torch.randn(size, classes, *pixels, generator=random)
        answers = scores.argmax(1)
        labels = torch.randint(-1, classes, answers.shape, generator=random)
        kept = torch.rand(answers.shape, generator=random) < 0.7
        labels = torch.where(kept, answers, torch.where(labels < 0, -100, labels))
        now = scores + torch.randn(scores.shape, generator=random)
        for sample in now.view(size, -1):
            place, what = torch.randint(sample.numel(), (), generator=random), torch.randint(7, (), generator=random)
            sample[place] = [nan, inf, -inf, *[float(sample[place])] * 4][what]
        clean.append(scores)
        faulty.append(now)
        targets.append(labels if labelled else None)
    scoring = Scoring.of(clean, read(sizes, targets), {})
    assert of(scoring.scores(faulty)) == counted(clean, faulty, targets)
    assert of(scoring.clean()) == counted(clean, clean, targets)
    assert 0 < of(scoring.scores(faulty))[3] < 1, "the case shows little"


@pytest.mark.parametrize(
    ("output", "targets"),
    [
        (torch.randn(4, 1), torch.zeros(4, dtype=torch.int64)),  # one score is no choice
        (torch.randn(4, 1), None),
        (torch.randn(4, 7, 9), None),  # tokens of a text, or points of a class: nothing says which
    ],
)
def test_outputs_that_may_be_no_class_scores_need_a_metric(output: Tensor, targets: Tensor | None) -> None:
    with pytest.raises(CampaignError, match="are no class scores for these targets"):
        Scoring.of([output], read([4], [targets]), {}).clean()


def test_infinities_that_are_there_without_faults_are_no_due_and_new_ones_are() -> None:
    clean = torch.tensor([[1.0, -inf, 0.0], [2.0, -inf, 1.0], [3.0, -inf, 0.0]])
    scoring = Scoring.of([clean], read([3], [torch.tensor([0, 0, 0])]), {})
    assert of(scoring.clean()) == (1.0, 0.0, 0.0, 0.0)
    now = clean.clone()
    now[0, 2] = nan  # a new one beside the old one
    now[1] = torch.tensor([0.0, -inf, 1.0])  # another answer
    now[2, 1] = inf  # in the place of the old one
    assert of(scoring.scores([now])) == pytest.approx((0.0, 1 / 3, 0.0, 2 / 3))


def test_samples_that_are_broken_without_faults_are_never_right_and_no_due() -> None:
    clean = torch.tensor([[nan, 1.0], [inf, 1.0], [2.0, 1.0]])
    scoring = Scoring.of([clean], read([3], [torch.tensor([0, 0, 0])]), {})
    assert of(scoring.clean()) == pytest.approx((1 / 3, 0.0, 0.0, 0.0))
    now = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 2.0]])
    assert of(scoring.scores([now])) == (0.0, 1.0, 0.0, 0.0)


def test_a_label_that_is_ignored_counts_nowhere() -> None:
    clean = torch.tensor([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [2.0, 1.0]])
    scoring = Scoring.of([clean], read([4], [torch.tensor([0, -100, 1, 0])]), {})
    assert scoring.clean().accuracy == 2 / 3
    now = torch.tensor([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [2.0, 1.0]])
    assert of(scoring.scores([now])) == pytest.approx((1 / 3, 1 / 2, 0.0, 0.0))


def test_batches_with_and_without_labels_count_each_for_what_it_has() -> None:
    clean = [torch.tensor([[2.0, 1.0]]), torch.tensor([[2.0, 1.0]])]
    scoring = Scoring.of(clean, read([1, 1], [torch.tensor([0]), None]), {})
    assert of(scoring.scores([clean[0], clean[1].flip(1)])) == (1.0, 0.5, 0.0, 0.0)


def test_a_network_that_is_never_right_still_has_an_accuracy_and_dues() -> None:
    clean = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    scoring = Scoring.of([clean], read([2], [torch.tensor([1, 1])]), {})
    assert of(scoring.clean()) == (0.0, None, None, 0.0)
    assert of(scoring.scores([torch.tensor([[1.0, 2.0], [nan, 0.0]])])) == (0.5, None, None, 0.5)


def test_an_output_of_another_shape_is_noticed() -> None:
    clean = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    scoring = Scoring.of([clean], read([2], [torch.tensor([0, 0])]), {})
    for output in (clean[:1], clean[:, :1], [], {}):
        assert of(scoring.scores([output])) == (0.0, 0.0, 0.0, 1.0)


@dataclass
class Answer:
    logits: Tensor
    more: Any = None


class ModelOutput(OrderedDict[str, Any]):
    """As transformers has it: a dict whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


Named = namedtuple("Named", ["scores", "more"])
WRAPPED = {
    "tensor": lambda logits, more: logits,
    "tuple": lambda logits, more: (logits, more),
    "list": lambda logits, more: [logits, [more]],
    "named tuple": Named,
    "dict": lambda logits, more: {"more": more, "logits": logits},
    "dict without logits": lambda logits, more: {"out": logits, "more": more},
    "dataclass": Answer,
    "model output": lambda logits, more: ModelOutput(more=more, logits=logits),
    "attributes": lambda logits, more: SimpleNamespace(more={"deep": (more,)}, logits=logits),
}


@pytest.mark.parametrize("form", WRAPPED)
def test_outputs_of_any_form_are_judged_by_their_class_scores(form: str) -> None:
    wrap = WRAPPED[form]
    clean, more = torch.tensor([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0]]), torch.zeros(3, 5)
    scoring = Scoring.of([wrap(clean, more)], read([3], [torch.tensor([0, 0, 1])]), {})
    assert of(scoring.clean()) == (2 / 3, 0.0, 0.0, 0.0)
    now = torch.tensor([[1.0, 2.0], [nan, 1.0], [2.0, 1.0]])
    assert of(scoring.scores([wrap(now, more)])) == (0.0, 0.5, 0.0, 1 / 3)


@pytest.mark.parametrize("form", [form for form in WRAPPED if form != "tensor"])
def test_what_breaks_beside_the_class_scores_is_noticed_too(form: str) -> None:
    wrap = WRAPPED[form]
    clean, more = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.zeros(2, 3)
    scoring = Scoring.of([wrap(clean, more)], read([2], [torch.tensor([0, 0])]), {})
    more = more.clone()
    more[1, 2] = inf
    assert of(scoring.scores([wrap(clean.flip(1), more)])) == (0.0, 0.5, 0.0, 0.5)


def test_whole_numbers_and_empty_tensors_beside_the_scores_do_no_harm() -> None:
    clean = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    output = (clean, torch.tensor([1, 2]), torch.empty(2, 0), torch.empty(0), None, "text", torch.tensor(1.0))
    scoring = Scoring.of([output], read([2], [torch.tensor([0, 0])]), {})
    assert of(scoring.scores([output])) == (1.0, 0.0, 0.0, 0.0)


def test_where_it_cannot_be_told_whose_a_nan_is_all_samples_are_due() -> None:
    """As where a language model gives one row per word of all its texts."""
    clean = torch.tensor([[2.0, 1.0]] * 6)
    scoring = Scoring.of([clean], read([2], [torch.tensor([0, 0, 0, 0, 0, 1])]), {})
    now = clean.clone()
    now[:3] = torch.tensor([1.0, 2.0])
    assert of(scoring.scores([now])) == pytest.approx((2 / 6, 3 / 5, 0.0, 0.0))
    now[5, 1] = nan
    assert of(scoring.scores([now])) == pytest.approx((2 / 6, 0.0, 0.0, 1.0))


def test_a_number_for_all_samples_breaks_all_of_them() -> None:
    assert broken({"loss": torch.tensor(nan)}, {"loss": torch.tensor(1.0)}, 3).tolist() == [True] * 3
    assert broken({"loss": torch.tensor(nan)}, {"loss": torch.tensor(nan)}, 3).tolist() == [False] * 3
    assert broken(torch.zeros(2, 5), torch.zeros(2, 5), 3).tolist() == [False] * 3


def test_detections_are_broken_image_by_image() -> None:
    image = lambda *scores: {"scores": torch.tensor(scores), "labels": torch.arange(len(scores))}  # noqa: E731
    clean = [image(0.9, 0.8), image(), image(0.5)]
    assert broken(clean, clean, 3).tolist() == [False] * 3
    # Two scores in the first image, and three images: the second score is not the second image's.
    assert broken([image(0.9, nan), image(), image(0.5)], clean, 3).tolist() == [True, False, False]
    # More or fewer boxes than without faults.
    assert broken([image(0.9), image(inf), image(0.5, 0.4)], clean, 3).tolist() == [False, True, False]
    assert broken([], clean, 3).tolist() == [False] * 3


def count_boxes(outputs: Any, targets: Any) -> float:
    found = [len(image["scores"]) for batch in outputs for image in batch]
    wanted = [len(image["boxes"]) for batch in targets for image in batch]
    return sum(map(min, found, wanted)) / sum(wanted)


def test_detectors_are_measured_by_a_metric_and_have_dues() -> None:
    targets = [[{"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(1, 4)}], [{"boxes": torch.zeros(1, 4)}]]
    output = [[{"scores": torch.ones(2)}, {"scores": torch.ones(1)}], [{"scores": torch.ones(1)}]]
    scoring = Scoring.of(output, read([2, 1], targets), {"recall": count_boxes})
    assert of(scoring.clean()) == (None, None, None, 0.0)
    assert scoring.clean().metrics == {"recall": 1.0}
    now = [[{"scores": torch.tensor([nan])}, {"scores": torch.ones(1)}], [{"scores": torch.ones(0)}]]
    scores = scoring.scores(now)
    assert of(scores) == (None, None, None, 1 / 3)
    assert scores.metrics == {"recall": 0.5}


def test_regression_needs_a_metric() -> None:
    output, targets = torch.randn(4, 1), torch.randn(4, 1)
    samples = read([3, 1], [targets[:3], targets[3:]])
    with pytest.raises(CampaignError) as told:
        Scoring.of(output.split([3, 1]), samples, {}).clean()
    assert str(told.value) == (
        "the model's outputs are no class scores for these targets, so there is no accuracy to measure;\n"
        '  give metrics={"name": function(outputs, targets)}'
    )
    error = lambda found, wanted: (found - wanted).abs().mean()  # noqa: E731
    scores = Scoring.of(output.split([3, 1]), samples, {"error": error}).clean()
    assert of(scores) == (None, None, None, 0.0)
    assert scores.metrics["error"] == pytest.approx(np.abs(output.numpy() - targets.numpy()).mean())


def test_data_whose_labels_are_all_ignored_has_nothing_to_measure() -> None:
    scoring = Scoring.of([torch.randn(2, 3)], read([2], [torch.tensor([-100, -100])]), {})
    with pytest.raises(CampaignError, match="no sample has a label that counts, so there is no accuracy to measure"):
        scoring.clean()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 3]), "label 3 is none of 3 classes"),
        (torch.tensor([0, -1]), "label -1 is none of 3 classes"),
        (torch.tensor([0]), r"the labels have shape \(1,\)"),
        (torch.tensor([[0], [1]]), r"the labels have shape \(2, 1\)"),
    ],
)
def test_labels_that_do_not_fit_the_class_scores_are_refused(targets: Tensor, message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        Scoring.of([torch.randn(2, 3)], read([2], [targets]), {})


def raising(found: Tensor, wanted: Tensor) -> float:
    if bool(found.isnan().any()):
        raise ZeroDivisionError("no boxes")
    return 1.0


def test_a_metric_that_raises_in_a_trial_is_told_and_the_others_are_measured() -> None:
    clean, labels = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 0])
    metrics = {"bad": raising, "good": lambda found, wanted: torch.tensor(0.25), "worse": raising}
    scoring = Scoring.of([clean], read([2], [labels]), metrics)
    assert scoring.clean().metrics == {"bad": 1.0, "good": 0.25, "worse": 1.0}
    scores = scoring.scores([torch.tensor([[2.0, 1.0], [nan, 1.0]])])
    assert scores.metrics == {"good": 0.25}
    said = "raised ZeroDivisionError: no boxes"
    assert scores.error == f"metric 'bad' {said}; metric 'worse' {said}"
    assert of(scores) == (0.5, 0.0, 0.0, 0.5)


def test_a_metric_that_gives_no_number_in_a_trial_is_told_and_left_out() -> None:
    clean = torch.tensor([[2.0, 1.0]])
    scoring = Scoring.of([clean], read([1], [torch.tensor([0])]), {"sum": lambda found, wanted: found.sum()})
    scores = scoring.scores([torch.tensor([[nan, 1.0]])])
    assert scores.metrics == {}
    assert scores.error == "metric 'sum' gave nan"


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda found, wanted: 1 / 0, "metric 'm' raised ZeroDivisionError: division by zero, without any fault"),
        (lambda found, wanted: {"iou": 1.0}, "metric 'm' raised TypeError: .*, without any fault"),
        (lambda found, wanted: nan, "metric 'm' gave nan, without any fault;\n  mend the metric"),
    ],
)
def test_a_metric_that_fails_without_faults_stops_the_campaign(metric: Any, message: str) -> None:
    scoring = Scoring.of([torch.randn(2, 3)], read([2], [torch.tensor([0, 1])]), {"m": metric})
    with pytest.raises(CampaignError, match=message):
        scoring.clean()


def test_metrics_get_one_tensor_of_all_samples_or_the_list_of_what_is_none() -> None:
    seen: list[Any] = []

    def metric(found: Any, wanted: Any) -> float:
        seen[:] = [found, wanted]
        return 0.0

    tensors = [torch.randn(2, 3), torch.randn(1, 3)]
    Scoring.of(tensors, read([2, 1], [torch.tensor([0, 1]), torch.tensor([2])]), {"m": metric}).clean()
    assert torch.equal(seen[0], torch.cat(tensors))
    assert seen[1].tolist() == [0, 1, 2]
    outputs = [(each, None) for each in tensors]
    Scoring.of(outputs, read([2, 1], [None, None]), {"m": metric}).clean()
    assert seen == [outputs, [None, None]]
