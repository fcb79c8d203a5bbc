"""A count of faults: exactly so many, and the same ones in every variant of a model. And the streams, for ever."""

from itertools import permutations

import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx.errors import FaultError
from fitact_fx.faults import BitFlip, Burst, RandomWord, StuckAt, Zero

BITS = {"float32": 32, "float16": 16, "q15.16": 32, "q3.4": 8, "int8": 8}


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))  # 12 + 3 + 6 + 2 parameters


class Branches(nn.Module):
    """What tracing could lose or rename: parts without use, two names for one part, tied weights, a free parameter."""

    def __init__(self):
        super().__init__()
        self.z = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 2)
        self.a = self.z
        self.out = nn.Linear(4, 4)
        self.out.weight = self.z.weight
        self.norm = nn.BatchNorm1d(4)
        self.free = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.out(torch.relu(self.norm(self.z(x)))) + self.free.sum()


def bounded(model):
    hard = fitact_fx.harden(model)
    fitact_fx.set_bounds(hard, {"*": (None, 6.0)})
    return hard


@pytest.mark.parametrize("stored", BITS)
@pytest.mark.parametrize("count", [0, 1, 2, 17, 91, 92, 93, 183])
def test_exactly_so_many_different_places_are_hit(stored, count):
    for seed in range(5):
        rows = list(BitFlip(count=count).draw(network(), stored, seed=seed).rows)
        assert len(rows) == len(set(rows)) == count
        sizes = {"0.weight": 12, "0.bias": 3, "2.weight": 6, "2.bias": 2}
        assert all(0 <= element < sizes[name] and 0 <= bit < BITS[stored] for name, element, bit in rows)


@pytest.mark.parametrize("stored", BITS)
@pytest.mark.parametrize(
    ("make", "ways"),
    [
        (BitFlip, lambda bits: bits),
        (lambda count: BitFlip(count=count, bits=["sign", 0, 2]), lambda bits: 3),
        (lambda count: StuckAt(count=count, value=1), lambda bits: bits),
        (lambda count: Burst(count=count, width=3), lambda bits: bits - 2),
        (RandomWord, lambda bits: 1),
        (Zero, lambda bits: 1),
    ],
    ids=["bit flip", "some bits", "stuck", "burst", "random word", "zero"],
)
def test_all_places_can_be_hit_but_not_one_more(make, ways, stored):
    total = 23 * ways(BITS[stored])
    rows = list(make(count=total).draw(network(), stored).rows)
    assert len({element for name, element, _ in rows if name == "0.weight"}) == 12
    assert len(rows) == len(set(rows))
    assert list(make(count=total).draw(network(), stored, seed=4).rows) == rows or make is RandomWord
    with pytest.raises(FaultError) as error:
        make(count=total + 1).draw(network(), stored)
    assert str(error.value) == (f"a count of {total + 1} is more than the {total} places in the 4 targeted tensors")


def test_a_count_of_nothing_changes_nothing():
    model = network()
    faults = BitFlip(count=0).draw(model)
    assert len(faults) == 0
    assert len(faults.shapes) == 4
    before = model[0].weight.detach().clone()
    with faults.applied(model):
        assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("fault", [BitFlip(count=40), Burst(count=9, width=2), RandomWord(count=7), BitFlip(rate=0.02)])
@pytest.mark.parametrize("seed", range(3))
def test_a_hardened_variant_gets_the_same_places(fault, seed):
    model = Branches().eval()
    plain, unset, hard = fault.draw(model, seed=seed), fitact_fx.harden(model), bounded(model)
    expected = set(plain.rows)
    assert set(fault.draw(unset, seed=seed).rows) == expected
    shared = {row for row in fault.draw(hard, seed=seed).rows if not row.tensor.endswith((".lower", ".upper"))}
    assert shared == expected
    with plain.applied(hard):
        pass


def test_a_count_in_several_kinds_of_memory_is_the_same_in_a_hardened_variant():
    model = Branches().eval()
    draw = BitFlip(count=25).draw
    both = ["parameters", "buffers"]
    assert set(draw(model, targets=both).rows) == set(draw(bounded(model), targets=both).rows)


@pytest.mark.parametrize("fault", [BitFlip(count=12), BitFlip(rate=0.05), RandomWord(count=5)])
def test_the_order_in_which_tensors_are_registered_makes_no_difference(fault):
    tensors = {"b": torch.ones(3, 2), "a": torch.ones(5), "ab": torch.ones(1), "B": torch.ones(2, 2)}
    drawn = [
        set(fault.draw(nn.ParameterDict({name: tensors[name] for name in order}), seed=2).rows)
        for order in permutations(tensors)
    ]
    assert drawn[0]
    assert all(each == drawn[0] for each in drawn)


def test_a_tied_parameter_is_one_tensor_with_one_count_of_bits():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    faults = BitFlip(count=9 * 32).draw(model, "float32")
    assert len(faults) == 9 * 32
    clean = model[0].weight.detach().clone()
    with faults.applied(model):
        assert torch.equal(model[1].weight.view(torch.int32), ~clean.view(torch.int32))
    with pytest.raises(FaultError, match=r"^a count of 289 is more than the 288 places in the 1 targeted tensors$"):
        BitFlip(count=289).draw(model, "float32")


def test_a_part_registered_twice_is_hit_once():
    model = nn.Sequential()
    model.add_module("z", nn.Linear(2, 2))
    model.add_module("a", model.z)
    assert BitFlip(count=0).draw(model).shapes == {"a.weight": (2, 2), "a.bias": (2,)}


def test_a_larger_count_at_the_same_seed_is_another_draw_and_a_trial_is_its_own():
    draws = [
        BitFlip(count=8).draw(network(), seed=seed, trial=trial).checksum for seed in range(9) for trial in range(9)
    ]
    assert len(set(draws)) == 81


# Drawn once and written down. If these change, every list that anyone has drawn changes with them.
GOLDEN = [
    (
        BitFlip(rate=0.01),
        ("float32", 7, 2),
        [("0.weight", 7, 18), ("0.weight", 8, 30), ("0.weight", 10, 10), ("0.weight", 10, 13), ("0.weight", 11, 11)],
    ),
    (
        BitFlip(rate=0.03, bits="exponent"),
        ("float32", 1, 0),
        [
            ("0.weight", 3, 24),
            ("0.weight", 3, 27),
            ("0.weight", 6, 30),
            ("0.weight", 7, 30),
            ("0.bias", 0, 27),
            ("2.weight", 2, 23),
        ],
    ),
    (
        BitFlip(count=6),
        ("q15.16", 0, 3),
        [
            ("0.weight", 0, 14),
            ("0.weight", 3, 9),
            ("0.weight", 8, 31),
            ("0.weight", 11, 2),
            ("2.weight", 1, 29),
            ("2.bias", 1, 31),
        ],
    ),
    (
        StuckAt(count=5, value=1, bits=["sign", 0]),
        ("int8", 0, 0),
        [("0.weight", 3, 0), ("0.weight", 8, 0), ("0.bias", 1, 7), ("2.weight", 0, 7), ("2.weight", 4, 7)],
    ),
    (
        Burst(rate=0.006, width=3),
        ("q15.16", 5, 1),
        [("2.weight", 2, 10), ("2.weight", 2, 11), ("2.weight", 2, 13), ("2.weight", 2, 14)],
    ),
    (
        Burst(count=2, width=4, bits="mantissa"),
        ("float16", 2, 2),
        [("0.weight", 2, bit) for bit in (5, 6, 7, 8)] + [("2.bias", 1, bit) for bit in (5, 6, 7, 8)],
    ),
    (
        RandomWord(rate=0.2),
        ("q15.16", 0, 0),
        [
            ("0.weight", 0, 46227337),
            ("0.weight", 2, 3923132786),
            ("0.weight", 7, 144177633),
            ("2.weight", 5, 1938346971),
        ],
    ),
    (RandomWord(count=3), ("q3.4", 0, 1), [("0.weight", 1, 36), ("2.weight", 0, 231), ("2.weight", 2, 40)]),
    (Zero(rate=0.2), ("float32", 4, 0), [("0.weight", 1, 0), ("0.weight", 10, 0), ("2.weight", 5, 0)]),
]


@pytest.mark.parametrize(("fault", "drawn", "rows"), GOLDEN)
def test_the_same_faults_are_drawn_on_every_machine_and_for_ever(fault, drawn, rows):
    assert [tuple(row) for row in fault.draw(network(), *drawn).rows] == rows
