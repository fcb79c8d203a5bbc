"""Intervals, against SciPy and against how often they should hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from fitact_fx.errors import FitactError
from fitact_fx.statistics import Interval, bootstrap_mean, paired_difference, rule_of_three, wilson


def accuracies(draws, seed=0):
    """Skewed as under faults: most draws do nothing, a few ruin the network."""
    return 0.92 - np.random.default_rng(seed).beta(0.3, 2.0, draws)


def test_the_bootstrap_interval_is_the_bca_one():
    samples = accuracies(40)
    ours = bootstrap_mean(samples, resamples=50_000)
    theirs = stats.bootstrap((samples,), np.mean, n_resamples=50_000, method="BCa", rng=0).confidence_interval
    width = theirs.high - theirs.low
    assert ours.mean == samples.mean()
    assert ours.low == pytest.approx(theirs.low, abs=0.02 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.02 * width)


def test_the_bootstrap_interval_holds_the_true_mean_about_as_often_as_it_says():
    truth = 0.92 - 0.3 / 2.3
    intervals = [bootstrap_mean(accuracies(60, seed), resamples=1_000) for seed in range(300)]
    held = sum(each.low <= truth <= each.high for each in intervals)
    assert 0.91 <= held / 300 <= 0.98


def test_the_same_seed_gives_the_same_interval_and_more_confidence_a_wider_one():
    samples = accuracies(30)
    assert bootstrap_mean(samples, seed=4) == bootstrap_mean(samples, seed=4)
    assert bootstrap_mean(samples, seed=4) != bootstrap_mean(samples, seed=5)
    narrow, wide = bootstrap_mean(samples, confidence=0.5), bootstrap_mean(samples, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_sample_says_nothing_about_the_spread():
    assert bootstrap_mean([0.5]) == Interval(0.5, -math.inf, math.inf)


def test_equal_samples_give_an_interval_of_no_width():
    assert bootstrap_mean([0.1] * 7) == Interval(0.1, 0.1, 0.1)


@pytest.mark.parametrize("samples", [[0.0, 1.0], [0.0] * 99 + [1.0], [1e-300, 2e-300], [0.9, 0.9, 0.1]])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999999])
def test_a_few_very_skewed_samples_still_give_an_interval_within_them(samples, confidence):
    interval = bootstrap_mean(samples, confidence=confidence, resamples=2_000)
    assert min(samples) <= interval.low <= interval.mean <= interval.high <= max(samples)


def test_pairing_removes_what_both_sides_share():
    hard, noise = accuracies(50), np.random.default_rng(1).normal(0, 1e-3, 50)
    paired = paired_difference(hard + 0.01 + noise, hard)
    assert paired.low <= 0.01 <= paired.high
    assert paired.high - paired.low < 1e-3


def test_pairs_of_different_length_are_refused():
    with pytest.raises(FitactError, match=r"^pairs need the same draws on both sides; got 3 and 2$"):
        paired_difference([1, 2, 3], [1, 2])


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 50), (3, 50), (25, 50), (50, 50)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_agrees_with_scipy(successes, trials, confidence):
    ours = wilson(successes, trials, confidence)
    theirs = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert ours.mean == successes / trials
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5)])
def test_a_proportion_that_is_none_is_refused(successes, trials):
    with pytest.raises(FitactError, match=f"trials >= 1; got {successes} of {trials}$"):
        wilson(successes, trials)


@pytest.mark.parametrize("trials", [1, 2, 10, 1_000])
def test_the_rule_of_three_lies_just_above_the_exact_bound(trials):
    exact = stats.binomtest(0, trials, alternative="less").proportion_ci(0.95).high
    assert exact <= rule_of_three(trials) <= 1.2 * exact or rule_of_three(trials) == 1.0
    assert rule_of_three(trials) >= exact


def test_no_trials_are_refused():
    with pytest.raises(FitactError, match=r"^no trials say nothing about a rate; got 0$"):
        rule_of_three(0)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], r"needs one number per fault draw, at least one; got shape \(0,\)"),
        ([[1.0, 2.0]], r"needs one number per fault draw, at least one; got shape \(1, 2\)"),
        ([1.0, math.nan, math.inf], "2 of 3 samples are NaN or infinite; count those draws as DUE instead"),
    ],
)
def test_samples_without_a_mean_are_refused(samples, message):
    with pytest.raises(FitactError, match=f"^{message}$"):
        bootstrap_mean(samples)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, math.nan])
def test_a_confidence_outside_zero_and_one_is_refused(confidence):
    with pytest.raises(FitactError, match=f"^a confidence lies between 0 and 1; got {confidence}$"):
        bootstrap_mean([1.0, 2.0], confidence=confidence)


def test_an_interval_prints_as_one_would_write_it():
    assert str(Interval(0.91234, 0.9, 0.92)) == "0.9123 [0.9, 0.92]"
