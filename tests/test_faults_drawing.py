"""What is drawn: the binomial distribution, against SciPy, and the very same bits everywhere."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from torch import nn

from fitact_fx.errors import FaultError
from fitact_fx.faults import BitFlip
from fitact_fx.faults.drawing import _count_table, _distinct, draw_positions, permuted, stream

ONCE_IN_TEN_THOUSAND = 1e-4  # seeds are fixed: these tests pass always or never


def draws(total, rate, trials, name="weight"):
    return [draw_positions(stream(0, trial, name), total, rate) for trial in range(trials)]


def binomial_p_value(counts, total, rate):
    """Chi-square of the counts seen against the binomial, in classes of at least five expected."""
    edges = stats.binom.ppf(np.linspace(0, 1, 12)[1:-1], total, rate)
    edges = np.unique(edges)
    seen = np.bincount(np.searchsorted(edges, counts), minlength=len(edges) + 1)
    expected = np.diff([0.0, *stats.binom.cdf(edges, total, rate), 1.0]) * len(counts)
    return stats.chisquare(seen, expected).pvalue


@pytest.mark.parametrize("rate", [1e-5, 3e-7, 1e-3, 1 / 64])
def test_the_probabilities_of_a_block_are_the_binomial_ones(rate):
    width, table = _count_table(rate)
    expected = stats.binom.cdf(np.arange(len(table)), 2**width, rate)
    np.testing.assert_allclose(table / 2.0**64, expected, rtol=1e-8)


@pytest.mark.parametrize(
    ("total", "rate"), [(4_000, 2e-3), (200_000, 3e-3), (50_000, 1e-4), (900, 0.1), (900, 0.5), (90, 0.97)]
)
def test_the_number_of_flips_is_binomial(total, rate):
    counts = [len(positions) for positions in draws(total, rate, 2_000)]
    assert binomial_p_value(counts, total, rate) > ONCE_IN_TEN_THOUSAND


@pytest.mark.parametrize(("total", "rate"), [(3_200, 5e-3), (3_200, 0.3)])
def test_flips_are_uniform_over_elements_and_bits(total, rate):
    positions = np.concatenate(draws(total, rate, 1_000))
    for cells, size in ((positions // 32, total // 32), (positions % 32, 32)):
        seen = np.bincount(cells, minlength=size)
        assert len(seen) == size
        assert stats.chisquare(seen).pvalue > ONCE_IN_TEN_THOUSAND


def test_every_set_of_positions_is_equally_likely():
    seen = Counter()
    for trial in range(3_000):
        seen[tuple(_distinct(stream(0, trial, "x"), np.array([4]), 3).tolist())] += 1
    sets = list(combinations(range(8), 4))
    assert set(seen) == set(sets)
    assert stats.chisquare([seen[each] for each in sets]).pvalue > ONCE_IN_TEN_THOUSAND


@pytest.mark.parametrize("rate", [1e-6, 1e-3, 0.2, 0.5, 0.9])
def test_positions_are_distinct_ascending_and_inside(rate):
    positions = draw_positions(stream(0, 0, "weight"), 3_000_001, rate)
    assert (np.diff(positions) > 0).all()
    assert len(positions) == 0 or (positions[0] >= 0 and positions[-1] < 3_000_001)


def test_rate_zero_flips_nothing_and_rate_one_everything():
    assert draw_positions(stream(0, 0, "weight"), 100, 0.0).tolist() == []
    assert draw_positions(stream(0, 0, "weight"), 100, 1.0).tolist() == list(range(100))


@pytest.mark.parametrize("rate", [5e-324, 1e-30, 1e-18])
def test_a_vanishing_rate_draws_without_fault(rate):
    assert len(draw_positions(stream(0, 0, "weight"), 10**9, rate)) == 0


@pytest.mark.parametrize(
    ("total", "rate", "expected"),
    [
        (10**9, 1e-8, [15811086, 37285217, 185733018, 418186908, 712435486, 728650001, 826569767, 872903291]),
        (10**6, 1e-5, [15440, 36411, 181379, 408385, 695737, 807197, 852444]),
        (4_000, 2e-3, [142, 708, 1595, 2717, 3153, 3329]),
        (32, 0.25, [0, 2, 3, 7, 9, 13, 16, 17, 21, 25, 27]),
    ],
)
def test_the_same_bits_are_drawn_on_every_machine_and_for_ever(total, rate, expected):
    assert draw_positions(stream(0, 3, "conv1.weight"), total, rate).tolist() == expected


def test_the_same_list_is_drawn_on_every_machine_and_for_ever():
    faults = BitFlip(rate=0.01).draw(nn.Linear(4, 3), format="q15.16", seed=7, trial=2)
    assert [tuple(row) for row in faults.rows] == [
        ("weight", 3, 24),
        ("weight", 5, 15),
        ("weight", 5, 21),
        ("weight", 8, 20),
        ("weight", 9, 26),
        ("weight", 10, 14),
    ]


def test_seed_trial_and_name_each_give_another_stream():
    keys = [(0, 0, "a"), (0, 0, "b"), (0, 1, "a"), (1, 0, "a"), (1, 11, "a"), (11, 1, "a"), (-1, 0, "a")]
    assert len({tuple(stream(*key).random_raw(2)) for key in keys}) == len(keys)


def layers(count):
    return nn.Sequential(*(nn.Linear(3, 3) for _ in range(count)))


def test_small_layers_get_their_share_at_a_low_rate():
    # 0.19 flips expected in each tensor per trial: what rounding down per layer would never draw.
    model, rate, trials = layers(20), 1e-3, 300
    lists = [BitFlip(rate=rate).draw(model, seed=0, trial=trial) for trial in range(trials)]
    memory = sum(parameter.numel() for parameter in model.parameters()) * 32
    assert binomial_p_value([len(each) for each in lists], memory, rate) > ONCE_IN_TEN_THOUSAND
    hits = Counter(row.tensor for each in lists for row in each.rows)
    seen = [hits[name] for name, _ in model.named_parameters()]
    expected = np.array([parameter.numel() * 32 for parameter in model.parameters()]) * rate * trials
    assert stats.chisquare(seen, expected * sum(seen) / expected.sum()).pvalue > ONCE_IN_TEN_THOUSAND


def test_a_tensor_gets_the_same_faults_whatever_else_the_model_holds():
    small, large = layers(2), layers(5)
    drawn = {one.name: one for one in BitFlip(rate=0.01).draw(large, seed=3, trial=5).tensors}
    for one in BitFlip(rate=0.01).draw(small, seed=3, trial=5).tensors:
        assert one.elements.tolist() == drawn[one.name].elements.tolist()
        assert one.values.tolist() == drawn[one.name].values.tolist()


@pytest.mark.parametrize("rate", [-1e-9, 1.0001, float("nan"), float("inf")])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(FaultError) as error:
        BitFlip(rate=rate)
    assert str(error.value) == f"a bit error rate lies between 0 and 1; got {rate}"


def test_a_model_without_parameters_is_refused():
    with pytest.raises(FaultError, match=r"^ReLU has no parameters and no bounds: nothing for a fault to hit$"):
        BitFlip(rate=1e-6).draw(nn.ReLU())


def test_a_lazy_parameter_is_refused_by_name():
    with pytest.raises(FaultError, match=r"^tensor 'weight' has no shape yet; run the model once before"):
        BitFlip(rate=1e-6).draw(nn.LazyLinear(3))


def test_a_format_that_a_tensor_cannot_hold_is_refused():
    with pytest.raises(FaultError) as error:
        BitFlip(rate=1e-6).draw(nn.Linear(2, 2).bfloat16(), format="q15.16")
    assert str(error.value) == (
        "tensor 'weight' is bfloat16, which cannot hold q15.16 numbers; "
        "choose another format, or convert the model to float32 or float64"
    )


@pytest.mark.parametrize("total", [1, 2, 3, 5, 16, 17, 1000, 4096, 5000])
def test_an_order_holds_every_position_once(total: int) -> None:
    order = [permuted(3, "conv1.weight", total, index) for index in range(total)]
    assert sorted(order) == list(range(total))


def test_orders_of_other_seeds_and_names_are_other_orders() -> None:
    orders = {
        tuple(permuted(seed, name, 1000, index) for index in range(100)) for seed in range(5) for name in ("a", "b")
    }
    assert len(orders) == 10


def test_every_position_comes_first_equally_often() -> None:
    total, seeds = 11, 5500
    counts = np.bincount([permuted(seed, "w", total, 0) for seed in range(seeds)], minlength=total)
    expected = seeds / total
    assert ((counts - expected) ** 2 / expected).sum() < 29.6  # chi-square, 10 degrees of freedom, 0.1 %


def test_neighbours_in_the_order_are_independent() -> None:
    total = 10_000
    order = np.array([permuted(0, "w", total, index) for index in range(total)])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.04  # four standard errors


def test_the_order_is_the_same_on_every_machine() -> None:
    assert [permuted(0, "conv1.weight", 10**12, index) for index in range(3)] == [
        630450118886,
        232950009247,
        708263904425,
    ]
