"""What bounds cost that nobody has learned or searched: a percentile of the values seen, or a share of them.

The user has asked for those, so the bounds stand; but a percentile that is a little too low silences a network, and
silence would look like safety.
"""

import warnings

from torch import nn

from fitact_fx.ambience import random_states_kept
from fitact_fx.batches import as_batches, labelled_alike
from fitact_fx.bounded import bounded_sites
from fitact_fx.clean_accuracy import Costs, costs_of, within
from fitact_fx.errors import CalibrationError, CostlyWarning
from fitact_fx.ranges import evaluating
from fitact_fx.spec import Spec


def warn_of_cost(hard: nn.Module, data: object, max_drop: float, stacklevel: int) -> None:
    """A CostlyWarning where such bounds cost more clean accuracy on all of `data` than `max_drop` allows.

    Nothing is measured where there are none, and where answers cannot be right or wrong: outputs that are no class
    scores, targets that are no classes of theirs.
    """
    asked = dict.fromkeys(_words(each.spec) for each in bounded_sites(hard).values() if _is_asked_for(each.spec))
    if not asked:
        return
    try:
        costs = _costs_on(hard, data)
    except CalibrationError:  # calibration has been through the same data: it is the answers that do not fit
        return
    if not within(costs.drop, max_drop):
        warnings.warn(
            f"the bounds, {' and '.join(asked)}, cost {100 * costs.drop:.2f} points of clean accuracy on these "
            f"{costs.samples} samples, more than max_drop allows ({100 * max_drop:.2f});\n"
            "  take a greater one, let a scheme learn the bounds within that limit, or allow a larger max_drop",
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


def _costs_on(hard: nn.Module, data: object) -> Costs:
    with random_states_kept(), evaluating(hard):
        return costs_of(hard, labelled_alike(as_batches(data)))
