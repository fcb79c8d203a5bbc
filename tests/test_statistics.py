"""Intervals and sample sizes, against formulas written out here and against how often they should hold the truth."""

import math
import tracemalloc
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from fitact_fx.errors import FitactError
from fitact_fx.statistics import (
    Interval,
    area_under,
    bootstrap_mean,
    draws_needed,
    exceeds,
    paired_difference,
    rule_of_three,
    sample_size,
    stopping_interval,
    wilson,
)


def accuracies(draws, seed=0):
    """Skewed as under faults: most draws do nothing, a few ruin the network."""
    return 0.92 - np.random.default_rng(seed).beta(0.3, 2.0, draws)


def bca(samples, confidence, resamples):
    """Efron (1987) written out in NumPy, with random numbers of its own."""
    n, normal = len(samples), NormalDist()
    means = np.random.default_rng(0).choice(samples, (resamples, n)).mean(axis=1)
    bias = normal.inv_cdf(((means < samples.mean()).mean() + (means <= samples.mean()).mean()) / 2)
    left_out = np.array([np.delete(samples, i).mean() for i in range(n)])
    apart = left_out.mean() - left_out
    acceleration = (apart**3).sum() / (6 * (apart**2).sum() ** 1.5)
    shifted = [bias + normal.inv_cdf(level) for level in ((1 - confidence) / 2, (1 + confidence) / 2)]
    return np.quantile(means, [normal.cdf(bias + z / (1 - acceleration * z)) for z in shifted])


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_bootstrap_interval_is_the_bca_one(confidence):
    samples = accuracies(40)
    ours = bootstrap_mean(samples, confidence, resamples=50_000)
    low, high = bca(samples, confidence, 50_000)
    assert ours.mean == samples.mean()
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.02 * (high - low))
    assert samples.mean() - low > 1.1 * (high - samples.mean()), "it should lean to the side of the ruins"


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


@pytest.mark.parametrize("samples", [[0.1] * 6 + [math.nextafter(0.1, 1)], [5e-324, 0.0], [0.3, 0.1 + 0.2, 0.3]])
def test_samples_that_differ_in_their_last_bit_are_no_special_case(samples):
    interval = bootstrap_mean(samples, resamples=200)
    assert min(samples) <= interval.low <= interval.mean <= interval.high <= max(samples)


def test_ties_between_resamples_are_seen_whatever_the_unit():
    ruins = np.array([0.0] * 27 + [1.0] * 3)
    plain = bootstrap_mean(ruins)
    moved = bootstrap_mean(0.92 - 0.82 * ruins)
    assert (moved.low, moved.high) == pytest.approx((0.92 - 0.82 * plain.high, 0.92 - 0.82 * plain.low), abs=0.01)
    scaled = bootstrap_mean(1e-9 * ruins)
    assert (scaled.low, scaled.high) == pytest.approx((1e-9 * plain.low, 1e-9 * plain.high), rel=1e-12)


def test_many_samples_are_resampled_in_little_memory():
    samples = accuracies(3_000)
    tracemalloc.start()
    bootstrap_mean(samples, resamples=5_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 2**20  # all at once, their positions alone take 114 MiB


def test_very_many_samples_get_the_percentile_interval():
    samples = accuracies(20_001)
    ours, error = bootstrap_mean(samples, resamples=400), samples.std() / math.sqrt(len(samples))
    assert (ours.low, ours.high) == pytest.approx((ours.mean - 1.96 * error, ours.mean + 1.96 * error), abs=0.4 * error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 0.9999999}, "a bootstrap cannot show a confidence of 0.9999999;\n  ask for 0.999999 at most"),
        ({"resamples": 99}, "a bootstrap needs 100 resamples or more; got 99"),
    ],
)
def test_what_resamples_cannot_show_is_refused(options, message):
    with pytest.raises(FitactError, match=f"^{message}$"):
        bootstrap_mean([1.0, 2.0], **options)


@pytest.mark.parametrize(("interval", "expected"), [((0.5, 0.25, 1.0), 0.375), ((0.5, -math.inf, math.inf), math.inf)])
def test_the_half_width_is_half_of_what_lies_between_the_ends(interval, expected):
    assert Interval(*interval).half_width == expected


def test_equal_samples_do_not_stop_a_campaign_before_a_rare_ruin_can_show():
    for ruined, size in ((0.05, 40), (0.02, 100)):
        truth = 0.9 * (1 - ruined)
        draws = [np.where(np.random.default_rng(seed).random(size) < ruined, 0.0, 0.9) for seed in range(300)]
        equal = [each for each in draws if (each == 0.9).all()]
        assert len(equal) > 20, "some have not seen a ruin yet"
        assert bootstrap_mean(equal[0]).half_width == 0, "for which the bootstrap would stop at once"
        for each in equal:
            interval = stopping_interval(each)
            assert interval.low <= truth <= interval.high
        assert stopping_interval(equal[0]).half_width > 0.01


def test_stopping_holds_the_truth_about_as_often_as_it_says():
    held = 0
    for seed in range(80):
        samples = np.where(np.random.default_rng(seed).random(2_000) < 0.03, 0.1, 0.9)
        size = 30
        while size < 2_000 and (interval := stopping_interval(samples[:size])).half_width > 0.02:
            size = size * 3 // 2
        held += interval.low <= 0.97 * 0.9 + 0.03 * 0.1 <= interval.high
    assert held >= 0.88 * 80


@pytest.mark.parametrize(
    ("samples", "confidence", "expected"),
    [
        ([0.5] * 30, 0.95, (0.5, 0.45, 0.55)),
        ([0.0] * 300, 0.95, (0.0, 0.0, 0.01)),
        ([1.0] * 300, 0.95, (1.0, 0.99, 1.0)),
        ([0.9] * 300, 0.95, (0.9, 0.891, 0.901)),
        ([0.5], 0.95, (0.5, 0.0, 1.0)),
        ([0.5] * 100, 0.99, (0.5, 0.5 + math.log(0.01) / 200, 0.5 - math.log(0.01) / 200)),
        ([7.0] * 300, 0.95, (7.0, -math.inf, math.inf)),
    ],
)
def test_equal_samples_are_known_to_the_rule_of_three(samples, confidence, expected):
    interval = stopping_interval(samples, confidence)
    assert (interval.mean, interval.low, interval.high) == pytest.approx(expected)


def test_samples_that_scatter_stop_by_their_bootstrap():
    samples = np.random.default_rng(0).choice([0.1, 0.9], 200)
    assert stopping_interval(samples, 0.9) == bootstrap_mean(samples, 0.9)


def test_samples_that_hardly_differ_stop_by_what_none_of_them_has_shown():
    samples = np.full(200, 0.9)
    samples[0] = 0.89
    found, mean = stopping_interval(samples), samples.mean()
    assert (found.low, found.high) == pytest.approx((mean - mean * 3 / 200, mean + (1 - mean) * 3 / 200))
    assert found.reach == pytest.approx(mean * 3 / 200)


def test_pairing_removes_what_both_sides_share():
    hard, noise = accuracies(50), np.random.default_rng(1).normal(0, 1e-3, 50)
    paired = paired_difference(hard + 0.01 + noise, hard)
    assert paired.low <= 0.01 <= paired.high
    assert paired.high - paired.low < 1e-3


def test_pairs_of_different_length_are_refused():
    with pytest.raises(FitactError, match=r"^pairs need the same draws on both sides; got 3 and 2$"):
        paired_difference([1, 2, 3], [1, 2])


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 50), (3, 50), (25, 50), (50, 50), (7, 10**9)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_wilsons_formula(successes, trials, confidence):
    ours = wilson(successes, trials, confidence)
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    assert ours.mean == share
    assert (ours.low, ours.high) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_wilson_reaches_exactly_to_what_was_seen_at_the_ends():
    assert wilson(0, 50).low == 0
    assert wilson(50, 50).high == 1


def test_wilson_holds_the_truth_about_as_often_as_it_says():
    intervals = [wilson(successes, 60) for successes in range(61)]
    covered = []
    for truth in (0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98):
        chances = [math.comb(60, k) * truth**k * (1 - truth) ** (60 - k) for k in range(61)]
        covered.append(sum(p for p, each in zip(chances, intervals, strict=True) if each.low <= truth <= each.high))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)
    assert min(covered) > 0.91


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5), (2.0, 5), (1, math.nan)])
def test_a_proportion_that_is_none_is_refused(successes, trials):
    with pytest.raises(FitactError, match=f"trials >= 1; got {successes} of {trials}$"):
        wilson(successes, trials)
    with pytest.raises(FitactError, match=f"trials >= 1; got {successes} of {trials}$"):
        exceeds(successes, trials, 0.5)


@pytest.mark.parametrize("share", [0.0, 0.005, 0.3, 1.0])
@pytest.mark.parametrize("trials", [1, 13, 60])
def test_exceeds_is_the_exact_tail(trials, share):
    exact = Fraction(share)
    chances = [math.comb(trials, k) * exact**k * (1 - exact) ** (trials - k) for k in range(trials + 1)]
    for successes in range(trials + 1):
        assert exceeds(successes, trials, share) == (sum(chances[successes:]) < Fraction("0.05"))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(FitactError, match="a share lies between 0 and 1; got"):
        exceeds(1, 2, share)


@pytest.mark.parametrize("trials", [1, 2, 10, 1_000])
def test_the_rule_of_three_lies_just_above_the_exact_bound(trials):
    exact = stats.binomtest(0, trials, alternative="less").proportion_ci(0.95).high
    assert exact <= rule_of_three(trials) <= 1.2 * exact or rule_of_three(trials) == 1.0
    assert rule_of_three(trials) >= exact


def test_no_trials_are_refused():
    with pytest.raises(FitactError, match=r"^no trials say nothing about a rate; got 0$"):
        rule_of_three(0)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.96, 0.99, 0.999])
def test_the_rule_of_three_is_never_below_the_exact_bound(confidence):
    for trials in (1, 5, 30, 1_000):
        assert rule_of_three(trials, confidence) >= 1 - (1 - confidence) ** (1 / trials)
    assert rule_of_three(1_000, 0.99) == pytest.approx(-math.log(0.01) / 1_000)


@pytest.mark.parametrize(
    ("margin", "confidence", "expected"), [(0.05, 0.95, 385), (0.01, 0.95, 9_604), (0.01, 0.99, 16_590)]
)
@pytest.mark.parametrize("population", [10**10, 2**63, 10**30, np.int64(2**62)])
def test_the_sample_sizes_are_those_that_every_table_prints(population, margin, confidence, expected):
    assert sample_size(population, margin, confidence) == expected


@pytest.mark.parametrize("population", [1, 2, 17, 500, 9_604, 320_000, 10**7])
@pytest.mark.parametrize(("margin", "share"), [("0.01", "0.5"), ("0.05", "0.5"), ("0.1", "0.02"), ("0.003", "0.9")])
@pytest.mark.parametrize(("confidence", "cut"), [(0.9, "1.645"), (0.95, "1.96"), (0.99, "2.576")])
def test_the_sample_size_is_leveugles_in_exact_fractions(population, margin, share, confidence, cut):
    e, p, t = Fraction(margin), Fraction(share), Fraction(cut)
    exact = population / (1 + e**2 * (population - 1) / (t**2 * p * (1 - p)))
    ours = sample_size(population, float(margin), confidence, float(share))
    assert exact <= ours < exact + 1
    assert 1 <= ours <= population


def test_a_sample_of_that_size_keeps_its_promise():
    for population, harmful in ((2_000, 1_000), (2_000, 300), (50_000, 25_000)):
        drawn = sample_size(population, margin=0.05, share=max(harmful / population, 0.2))
        seen = stats.hypergeom(population, harmful, drawn)
        truth = harmful / population
        within = seen.cdf(math.floor((truth + 0.05) * drawn)) - seen.cdf(math.ceil((truth - 0.05) * drawn) - 1)
        assert within >= 0.94
    few = sample_size(2_000, margin=0.05) // 2
    seen = stats.hypergeom(2_000, 1_000, few)
    within = seen.cdf(math.floor(0.55 * few)) - seen.cdf(math.ceil(0.45 * few) - 1)
    assert within < 0.9, "and half of it would not"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"population": 0}, "a population is a whole number of faults from 1 up; got 0"),
        ({"population": 2.5}, "a population is a whole number of faults from 1 up; got 2.5"),
        ({"population": 9, "margin": 0}, "a margin lies between 0 and 1; got 0"),
        ({"population": 9, "margin": 5}, "a margin lies between 0 and 1; got 5"),
        ({"population": 9, "margin": math.nan}, "a margin lies between 0 and 1; got nan"),
        ({"population": 9, "share": 1.0}, "a share lies between 0 and 1; got 1.0"),
        ({"population": 9, "share": 0}, "a share lies between 0 and 1; got 0"),
        ({"population": 9, "confidence": 95}, "a confidence lies between 0 and 1; got 95"),
    ],
)
def test_a_sample_of_nothing_known_is_refused(arguments, message):
    with pytest.raises(FitactError, match=f"^{message}$"):
        sample_size(**arguments)


@pytest.mark.parametrize("confidence", [1e-9, 1 - 1e-16])
def test_the_outermost_confidences_give_a_sample_too(confidence):
    assert 1 <= sample_size(1_000, confidence=confidence) <= 1_000
    assert sample_size(1, confidence=confidence) == 1


@pytest.mark.parametrize(
    ("spread", "margin", "confidence", "expected"),
    [
        (0.2, 0.01, 0.95, 1_537),  # (1.96 * 20) ** 2 = 1536.64
        (0.05, 0.01, 0.95, 97),  # 9.8 ** 2 = 96.04
        (0.05, 0.0098, 0.95, 100),  # 10 ** 2 exactly
        (0.2, 0.01, 0.99, 2_655),  # (2.576 * 20) ** 2 = 2654.31
        (0.0, 0.01, 0.95, 2),
        (1e-9, 0.01, 0.95, 2),
    ],
)
def test_the_draws_needed_are_those_of_the_formula(spread, margin, confidence, expected):
    assert draws_needed(spread, margin, confidence) == expected


def test_that_many_draws_keep_their_promise():
    spread, samples = 0.2, np.random.default_rng(0).choice([0.3, 0.7], (2_000, draws_needed(0.2, margin=0.04)))
    assert samples.std() == pytest.approx(spread, rel=0.01)
    assert np.mean(np.abs(samples.mean(axis=1) - 0.5) <= 0.04 + 1e-9) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1,), "a spread is a standard deviation, from 0 up; got -0.1"),
        ((math.nan,), "a spread is a standard deviation, from 0 up; got nan"),
        ((0.1, 0.0), "a margin lies above 0; got 0.0"),
        ((0.1, math.inf), "a margin lies above 0; got inf"),
        ((0.1, 0.01, 1), "a confidence lies between 0 and 1; got 1"),
    ],
)
def test_draws_for_nothing_known_are_refused(arguments, message):
    with pytest.raises(FitactError, match=f"^{message}$"):
        draws_needed(*arguments)


def test_the_area_under_straight_lines_is_what_one_draws():
    # From 0.9 to 0.7 over one decade, and from 0.7 to 0.1 over half of one: (0.8 * 1 + 0.4 * 0.5) / 1.5.
    rates, values = [1e-6, 1e-5, 1e-5 * math.sqrt(10)], [0.9, 0.7, 0.1]
    assert area_under(rates, values) == pytest.approx(1.0 / 1.5)
    assert area_under([rates[2], rates[0], rates[1]], [0.1, 0.9, 0.7]) == pytest.approx(1.0 / 1.5)


def test_the_area_is_the_mean_of_the_interpolated_curve():
    rates, values = np.array([1e-7, 3e-7, 1e-6, 3e-6, 1e-5]), accuracies(5)
    grid = np.linspace(-7, -5, 200_001)
    assert area_under(rates, values) == pytest.approx(np.interp(grid, np.log10(rates), values).mean(), abs=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.25, 0.1, 1.0])
def test_the_area_under_a_constant_is_the_constant(constant):
    assert area_under([1e-7, 3e-6, 1e-6, 0.5], [constant] * 4) == pytest.approx(constant, rel=1e-14)


def test_values_at_the_same_rate_count_as_their_mean():
    doubled = area_under([1e-6, 1e-5, 1e-5, 1e-4], [0.9, 0.8, 0.6, 0.1])
    assert doubled == pytest.approx(area_under([1e-6, 1e-5, 1e-4], [0.9, 0.7, 0.1]))


@pytest.mark.parametrize(
    ("rates", "values", "message"),
    [
        ([1e-6], [0.5], r"an area needs two different rates or more, all above 0; got \[1e-06\]"),
        ([1e-6, 1e-6], [0.5, 0.6], r"an area needs two different rates or more, all above 0; got \[1e-06\]"),
        ([0.0, 1e-6], [0.5, 0.6], r"an area needs two different rates or more, all above 0; got \[0.0, 1e-06\]"),
        ([1e-6, 1e-5], [0.5], "an area needs one value per rate; got 2 rates and 1 values"),
        ([1e-6, 1e-5], [0.5, math.nan], "1 of 2 samples are NaN or infinite; count those draws as DUE instead"),
        ([], [], r"needs one number per fault draw, at least one; got shape \(0,\)"),
    ],
)
def test_an_area_under_nothing_is_refused(rates, values, message):
    with pytest.raises(FitactError, match=f"^{message}$"):
        area_under(rates, values)


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
