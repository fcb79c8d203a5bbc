"""Drawn faults have the distribution they promise, by chi-square, Kolmogorov-Smirnov and exact tests of SciPy.

Seeds are fixed, so these tests pass always or never. Faults of one kind of place (a bit, a word, the start of a
burst) are numbered through all tensors, and what was drawn in many trials is a matrix: trials by places.
"""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fitact_fx.faults import BitFlip, Burst, Memory, RandomWord, StuckAt, Zero
from fitact_fx.models import resnet20

RARE = 1e-3
SIZES = {"b": 40, "a": 30, "bias": 4, "one": 1}
WORD = 8  # bits of q3.4, in which everything below is stored unless it says otherwise
PLACES = sum(SIZES.values()) * WORD
RATES = [2e-3, 0.9 / 64, 1 / 64, 1.01 / 64, 0.05, 0.5, 0.97]  # a word per place is drawn above 1/64, blocks below
COUNTS = [1, 7, PLACES // 2, PLACES // 2 + 1, PLACES - 3]


def tensors():
    return nn.ParameterDict({name: torch.ones(size) for name, size in SIZES.items()})


def hits(fault, trials, seed=0, ways=WORD):
    """(trials, places) bool: which places each trial hit, tensors one after the other in the order of SIZES."""
    memory, names = Memory.of(tensors()), list(SIZES)
    start = dict(zip(names, np.cumsum([0, *SIZES.values()]), strict=False))
    hit = np.zeros((trials, sum(SIZES.values()) * ways), bool)
    for trial in range(trials):
        for one in fault.draw(memory, "q3.4", seed=seed, trial=trial).tensors:
            hit[trial, (one.elements + start[one.name]) * ways + (one.values if ways > 1 else 0)] = True
    return hit


def assert_likely(p_value):
    """Neither too far from what is expected nor too near to it."""
    assert RARE < p_value < 1 - RARE


def independent_places(seen, trials, probability):
    """P of so much spread if each of the places is hit with that probability, independently."""
    spread = ((seen - trials * probability) ** 2).sum() / (trials * probability * (1 - probability))
    return stats.chi2.sf(spread, len(seen))


def fixed_number_of_places(seen, trials, probability):
    """The same if each trial hits so large a share of the places, every set equally likely."""
    spread = ((seen - trials * probability) ** 2).sum() / (trials * probability * (1 - probability))
    return stats.chi2.sf(spread * (len(seen) - 1) / len(seen), len(seen) - 1)


def goodness(numbers, distribution):
    """Chi-square of whole numbers against a distribution of SciPy's, in classes of some expected size."""
    edges = np.unique(distribution.ppf(np.linspace(0, 1, 10)[1:-1]))
    seen = np.bincount(np.searchsorted(edges, numbers), minlength=len(edges) + 1)
    expected = np.diff([0.0, *distribution.cdf(edges), 1.0]) * len(numbers)
    kept = expected > 0
    assert not seen[~kept].any()
    return stats.chisquare(seen[kept], expected[kept]).pvalue


@pytest.mark.parametrize("rate", RATES)
def test_at_a_rate_every_place_is_hit_with_that_probability_and_their_number_is_binomial(rate):
    trials = 4000 if rate < 0.01 else 1500
    hit = hits(BitFlip(rate=rate), trials)
    assert_likely(independent_places(hit.sum(0), trials, rate))
    assert goodness(hit.sum(1), stats.binom(PLACES, rate)) > RARE
    assert goodness(hit[:, -40:].sum(1), stats.binom(40, rate)) > RARE  # the two smallest tensors by themselves


@pytest.mark.parametrize("rate", RATES)
def test_no_bit_and_no_element_is_preferred(rate):
    hit = hits(BitFlip(rate=rate), 1500, seed=1).reshape(1500, -1, WORD)
    bits, elements = hit.sum((0, 1)), hit.sum((0, 2))
    assert_likely(independent_places(bits, 1500 * hit.shape[1], rate))
    assert_likely(independent_places(elements, 1500 * WORD, rate))


@pytest.mark.parametrize("count", COUNTS)
def test_a_count_prefers_no_place_and_its_share_in_a_tensor_is_hypergeometric(count):
    trials = 3000 if count == 1 else 1200
    hit = hits(BitFlip(count=count), trials)
    assert (hit.sum(1) == count).all()
    assert_likely(fixed_number_of_places(hit.sum(0), trials, count / PLACES))
    if count > 1:
        assert goodness(hit[:, : 40 * WORD].sum(1), stats.hypergeom(PLACES, 40 * WORD, count)) > RARE


def test_every_set_of_so_many_places_is_equally_likely():
    model = Memory.of(nn.ParameterDict({"x": torch.ones(2), "y": torch.ones(4)}))
    seen = {}
    for trial in range(3000):
        rows = frozenset(row[:2] for row in Zero(count=3).draw(model, trial=trial).rows)
        seen[rows] = seen.get(rows, 0) + 1
    assert len(seen) == 20
    assert_likely(stats.chisquare(list(seen.values())).pvalue)


@pytest.mark.parametrize("bits", ["sign", ["integer", 0]])
def test_a_rate_among_some_bits_is_that_of_these_bits_alone(bits):
    chosen = [7] if bits == "sign" else [0, 4, 5, 6]
    hit = hits(BitFlip(rate=0.1, bits=bits), 1500).reshape(1500, -1, WORD)
    assert not np.delete(hit, chosen, axis=2).any()
    assert_likely(independent_places(hit[:, :, chosen].sum(0).ravel(), 1500, 0.1))
    assert goodness(hit.sum((1, 2)), stats.binom(75 * len(chosen), 0.1)) > RARE


@pytest.mark.parametrize("fault", [Zero(rate=0.03), RandomWord(rate=0.03), Zero(rate=0.01), RandomWord(rate=0.3)])
def test_a_rate_of_words_is_the_probability_of_each_word(fault):
    hit = hits(fault, 2500, ways=1)
    assert_likely(independent_places(hit.sum(0), 2500, fault.rate))
    assert goodness(hit.sum(1), stats.binom(75, fault.rate)) > RARE


def test_a_burst_starts_anywhere_in_the_word_with_the_same_probability():
    starts = []
    for trial in range(2000):
        rows = Burst(count=1, width=3).draw(tensors(), "q3.4", trial=trial).rows
        assert [row.bit - rows[0].bit for row in rows] == [0, 1, 2]
        assert len({row[:2] for row in rows}) == 1
        starts.append(rows[0].bit)
    assert_likely(stats.chisquare(np.bincount(starts, minlength=6)).pvalue)


def coincidences(one, other, probability):
    return stats.binomtest(int((one & other).sum()), one.size, probability).pvalue


@pytest.mark.parametrize("fault", [BitFlip(rate=0.01), BitFlip(rate=0.2), StuckAt(rate=0.1, value=1)])
def test_tensors_trials_seeds_and_neighbours_are_independent(fault):
    hit, rate = hits(fault, 2000), fault.rate
    assert coincidences(hit[:-1], hit[1:], rate**2) > RARE  # this trial and the next
    assert coincidences(hit, hits(fault, 2000, seed=1), rate**2) > RARE
    assert coincidences(hit[:, 1:], hit[:, :-1], rate**2) > RARE  # this bit and the next
    assert coincidences(hit[:, WORD:], hit[:, :-WORD], rate**2) > RARE  # the same bit of the next element
    first, second = hit[:, : 30 * WORD], hit[:, 40 * WORD : 70 * WORD]  # the same places of two tensors
    assert coincidences(first, second, rate**2) > RARE
    for a, b in ((first.sum(1), second.sum(1)), (hit[:-1].sum(1), hit[1:].sum(1))):
        table = np.histogram2d(a > np.median(a), b > np.median(b), bins=2)[0]
        assert stats.chi2_contingency(table).pvalue > RARE
        assert stats.spearmanr(a, b).pvalue > RARE


@pytest.mark.parametrize("count", [9, 300])
def test_trials_of_a_count_are_independent(count):
    hit, share = hits(BitFlip(count=count), 1500), count / PLACES
    assert coincidences(hit[:-1], hit[1:], share**2) > RARE
    assert coincidences(hit[:, 1:], hit[:, :-1], share * (count - 1) / (PLACES - 1)) > RARE


def test_random_words_are_uniform_and_say_nothing_about_where_they_are():
    model = Memory.of(nn.ParameterDict({"x": torch.ones(4000), "y": torch.ones(4000)}))
    short, long = (RandomWord(rate=1).draw(model, stored).tensors for stored in ("q3.4", "q15.16"))
    assert_likely(stats.chisquare(np.bincount(short[0].values, minlength=256)).pvalue)
    words = np.concatenate([one.values for one in long])
    assert stats.kstest(words / 2**32, "uniform").pvalue > RARE
    ones = (words[:, None] >> np.arange(32, dtype=np.uint32) & 1).astype(bool)
    assert_likely(independent_places(ones.sum(0), len(words), 0.5))
    assert coincidences(ones[:, 1:], ones[:, :-1], 0.25) > RARE
    assert coincidences(ones[:4000], ones[4000:], 0.25) > RARE  # the same elements of two tensors
    some = RandomWord(rate=0.5).draw(model, "q15.16").tensors[0]
    assert stats.spearmanr(some.elements, some.values).pvalue > RARE


def test_flips_lie_uniformly_in_a_large_tensor_at_a_low_rate():
    memory = Memory.of(nn.ParameterDict({"x": torch.ones(3, 1_000_001)}))
    lists = [BitFlip(rate=3e-7).draw(memory, trial=trial).tensors[0] for trial in range(200)]
    total = 3_000_003 * 32
    places = np.concatenate([one.elements * 32 + one.values for one in lists])
    assert stats.kstest(places / total, "uniform").pvalue > RARE
    assert goodness([len(one) for one in lists], stats.binom(total, 3e-7)) > RARE


@pytest.fixture(scope="module")
def resnet():
    return Memory.of(resnet20())


def test_a_resnet20_gets_its_two_and_a_half_flips_a_trial(resnet):
    memory = sum(parameter.numel() for parameter in resnet20().parameters()) * 32
    numbers = [len(BitFlip(rate=3e-7).draw(resnet, "q15.16", trial=trial)) for trial in range(600)]
    assert 2.55 < memory * 3e-7 < 2.65
    assert abs(np.mean(numbers) - memory * 3e-7) < 3.3 * np.sqrt(memory * 3e-7 / 600)
    assert goodness(numbers, stats.binom(memory, 3e-7)) > RARE


def test_every_layer_of_a_resnet20_gets_its_share(resnet):
    sizes = {name: parameter.numel() for name, parameter in resnet20().named_parameters()}
    seen = dict.fromkeys(sizes, 0)
    for trial in range(200):
        for one in BitFlip(rate=2e-5).draw(resnet, "q15.16", trial=trial).tensors:
            seen[one.name] += len(one)
    expected = np.array(list(sizes.values())) * 32 * 2e-5 * 200
    large = expected > 5
    pooled = [*expected[large], expected[~large].sum()], [*np.array(list(seen.values()))[large], 0]
    pooled[1][-1] = sum(seen.values()) - sum(pooled[1])
    spread = sum((found - wanted) ** 2 / wanted for wanted, found in zip(*pooled, strict=True))
    assert_likely(stats.chi2.sf(spread, len(pooled[0])))


def test_a_bias_of_ten_elements_gets_its_flips_at_a_rate_that_seldom_reaches_it(resnet):
    fault, trials, target = BitFlip(rate=1e-4), 3000, ["parameters:linear.bias"]
    numbers = [len(fault.draw(resnet, "q15.16", trial=trial, targets=target)) for trial in range(trials)]
    assert stats.binomtest(sum(numbers), trials * 320, 1e-4).pvalue > RARE
    assert max(numbers) <= 3
