"""What bounds cost that nobody has learned or searched: a percentile of the values seen, or a share of them.

The user has asked for those, so the bounds stand; but a percentile that is a little too low silences a network, and
silence would look like safety.
"""

import warnings
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fitact_fx.ambience import random_states_kept
from fitact_fx.answers import label_each, scores_in
from fitact_fx.batches import Batch, as_batches, labelled_alike
from fitact_fx.bounded import bounded_sites
from fitact_fx.clean_accuracy import Costs, costs_of, within
from fitact_fx.errors import CostlyWarning
from fitact_fx.ranges import evaluating
from fitact_fx.spec import Spec


def warn_of_cost(hard: nn.Module, data: object, max_drop: float, stacklevel: int) -> None:
    """A CostlyWarning where such bounds cost more clean accuracy on all of `data` than `max_drop` allows.

    Where targets are no classes, as the first batch shows, the model's own clean answers are the right ones. Nothing is
    measured where there are no such bounds, and where the outputs are no class scores. CalibrationError for data that
    cannot be gone through once more, and for labels that do not fit: only some batches have any, or one is no class.
    """
    asked = dict.fromkeys(_words(each.spec) for each in bounded_sites(hard).values() if _is_asked_for(each.spec))
    costs = _costs_on(hard, data) if asked else None
    if costs is not None and not within(costs.drop, max_drop):
        warnings.warn(
            f"the bounds, {' and '.join(asked)}, cost {100 * costs.drop:.2f} points of clean accuracy on these "
            f"{costs.samples} samples, more than max_drop allows ({100 * max_drop:.2f});\n"
            "  ask for a greater percentile or share, let a scheme learn them within that limit, or allow more",
            CostlyWarning,
            stacklevel=stacklevel + 1,
        )


def _is_asked_for(spec: Spec) -> bool:
    return not spec.learned and (spec.percentile < 100 or spec.share < 1)


def _words(spec: Spec) -> str:
    percentile, share = f"percentile {spec.percentile:g}", f"{spec.share:g} of the maximum"
    if spec.percentile < 100 and spec.share < 1:
        return f"at {spec.share:g} of {percentile}"
    return f"at {percentile if spec.percentile < 100 else share}"


def _costs_on(hard: nn.Module, data: object) -> Costs | None:
    """What the bounds cost on all of `data`; None where the outputs are no class scores."""
    with random_states_kept(), evaluating(hard), torch.no_grad():
        seen = as_batches(data, "measure bounds on")
        bar = iter(tqdm(seen, "measuring the bounds", unit="batch", delay=2, disable=None, leave=False))
        first = next(bar)
        scores, labels = scores_in(first.run(hard)), first.targets
        batches: Iterable[Batch] = chain([first], bar)
        if scores is not None and isinstance(labels, Tensor) and not label_each(labels, scores):
            labels, batches = None, (batch._replace(targets=None) for batch in batches)
        if scores is None or not _of_classes(scores, labelled=labels is not None):
            return None
        return costs_of(hard, labelled_alike(batches))


def _of_classes(scores: Tensor, *, labelled: bool) -> bool:
    """One score is no choice between classes; and without labels, three dimensions may be (N, T, classes) as well."""
    return scores.is_floating_point() and scores.shape[1] > 1 and (labelled or scores.ndim != 3)
