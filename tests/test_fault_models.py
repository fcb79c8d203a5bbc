"""Fault models word by word: what is in memory, against struct, fractions, NumPy and ml_dtypes."""

from collections import Counter

import numpy as np
import pytest
import torch
from fault_oracles import CASES, ORACLES, Cells, assert_holds, raw

from fitact_fx.faults import BitFlip, Burst, RandomWord, StuckAt, Zero

# What NumPy says of the NaNs that faults make: they are meant.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")


def changes_of(rows, change):
    """(tensor, element) -> what happens to its word, from rows (tensor, element, bit or word)."""
    values = {}
    for name, element, value in rows:
        values.setdefault((name, element), []).append(value)
    return {place: lambda word, own=own: change(word, own) for place, own in values.items()}


def mask(bits):
    return sum(1 << bit for bit in bits)


CHANGES = {
    "flip": lambda word, bits: word ^ mask(bits),
    "stuck-at-0": lambda word, bits: word & ~mask(bits),
    "stuck-at-1": lambda word, bits: word | mask(bits),
    "word": lambda word, new: new[0],
}
FAULTS = [
    (BitFlip(rate=0.06), "flip"),
    (BitFlip(count=99), "flip"),
    (BitFlip(rate=0.4, bits=["sign", 1]), "flip"),
    (Burst(rate=0.05, width=3), "flip"),
    (StuckAt(rate=0.2, value=0), "stuck-at-0"),
    (StuckAt(count=80, value=1), "stuck-at-1"),
    (RandomWord(rate=0.3), "word"),
    (Zero(count=20), "word"),
]


@pytest.mark.parametrize(("stored", "dtype"), CASES)
@pytest.mark.parametrize(("fault", "change"), FAULTS, ids=lambda each: getattr(each, "event", each))
def test_memory_holds_the_words_that_an_oracle_makes_of_the_rows(fault, change, stored, dtype):
    model = Cells(dtype)
    clean = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    faults = fault.draw(model, stored, seed=5)
    assert len(faults) > 10
    if isinstance(fault, Zero):
        assert {row.word for row in faults.rows} == {0}
    assert_holds(model, faults, clean, stored, changes_of(faults.rows, CHANGES[change]))


def some_places(bits, width=1, several=4):
    """Places with many in one word, in no order."""
    random = np.random.default_rng(2)
    elements = [("weight", int(each)) for each in random.choice(120, 15, replace=False)] + [("bias", 0), ("bias", 8)]
    places = [(*at, int(bit)) for at in elements for bit in random.choice(bits - width + 1, several, replace=False)]
    random.shuffle(places)
    return [(name, int(element), int(bit)) for name, element, bit in places]


@pytest.mark.parametrize(("stored", "dtype"), CASES)
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (lambda places: BitFlip(places=places), CHANGES["flip"]),
        (lambda places: StuckAt(places=places, value=0), CHANGES["stuck-at-0"]),
        (lambda places: StuckAt(places=places, value=1), CHANGES["stuck-at-1"]),
    ],
    ids=["flip", "stuck-at-0", "stuck-at-1"],
)
def test_faults_at_given_places_make_the_words_of_the_oracle(kind, change, stored, dtype):
    model = Cells(dtype)
    clean = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    places = some_places(ORACLES[stored](np.ones(1)).bits)
    assert_holds(model, kind(places).draw(model, stored), clean, stored, changes_of(places, change))


@pytest.mark.parametrize(("stored", "dtype"), CASES)
@pytest.mark.parametrize("width", [2, 3, 5, "whole"])
def test_overlapping_bursts_flip_twice_what_both_cover(stored, dtype, width):
    model = Cells(dtype)
    clean = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    bits = ORACLES[stored](np.ones(1)).bits
    width = bits if width == "whole" else width
    places = some_places(bits, width, several=min(4, bits - width + 1))

    def burst(word, starts):
        for start in starts:
            word ^= ((1 << width) - 1) << start
        return word

    faults = Burst(places=places, width=width).draw(model, stored)
    assert_holds(model, faults, clean, stored, changes_of(places, burst))


@pytest.mark.parametrize(
    ("bits", "width", "starts"),
    [
        (None, 1, range(32)),
        (None, 3, range(30)),
        (None, 32, [0]),
        ("exponent", 8, [23]),
        ("exponent", 3, range(23, 29)),
        ([0, 1, 2, 5, 6, 8, "sign"], 2, [0, 1, 5]),
        (["sign", "exponent"], 2, range(23, 31)),
    ],
)
def test_at_rate_one_a_burst_starts_wherever_it_fits(bits, width, starts):
    times = Counter(bit for start in starts for bit in range(start, start + width))
    odd = [bit for bit in range(32) if times[bit] % 2]
    rows = Burst(rate=1, width=width, bits=bits).draw(Cells(), "float32", targets=["parameters:bias"]).rows
    assert list(rows) == [("bias", element, bit) for element in range(9) for bit in odd]


FIELDS = [
    ("float32", "sign", [31]),
    ("float32", "exponent", range(23, 31)),
    ("float32", "mantissa", range(23)),
    ("float16", "exponent", range(10, 15)),
    ("bfloat16", "mantissa", range(7)),
    ("float8_e5m2", "exponent", range(2, 7)),
    ("q15.16", "integer", range(16, 31)),
    ("q15.16", "fraction", range(16)),
    ("q0.7", "sign", [7]),
    ("int8", "integer", range(7)),
    ("q15.16", ["sign", 3, "fraction", 3], [*range(16), 31]),
    ("float32", 0, [0]),
    ("float32", (30, 23, 30), [23, 30]),
]


@pytest.mark.parametrize(("stored", "bits", "expected"), FIELDS)
def test_only_the_chosen_bits_are_hit_and_at_rate_one_all_of_them(stored, bits, expected):
    everywhere = [("bias", element, bit) for element in range(9) for bit in expected]
    for fault in (BitFlip(rate=1, bits=bits), StuckAt(rate=1.0, value=1, bits=bits)):
        assert list(fault.draw(Cells(), stored, targets="parameters:bias").rows) == everywhere
    some = BitFlip(rate=0.3, bits=bits).draw(Cells(), stored, seed=1).rows
    assert {bit for _, _, bit in some} <= set(expected)
    assert len(BitFlip(count=129 * len(expected), bits=bits).draw(Cells(), stored)) == 129 * len(expected)


def test_a_bit_that_is_already_stuck_leaves_a_float_as_it_is_and_rounds_a_number_to_its_fixed_point_word():
    model = Cells()
    with torch.no_grad():
        model.bias[:2] = torch.tensor([1.5 + 2**-20, -0.0])
    before = raw(model)["bias"]
    places = [("bias", 0, 30), ("bias", 1, 30)]
    with StuckAt(places=places, value=0).draw(model, "float32").applied(model):
        assert torch.equal(raw(model)["bias"], before)
    with StuckAt(places=places, value=0).draw(model, "q15.16").applied(model):
        assert model.bias[0].item() == 1.5
        assert torch.equal(raw(model)["bias"][2:], before[2:])
    assert torch.equal(raw(model)["bias"], before)


@pytest.mark.parametrize(("stored", "dtype"), CASES)
def test_all_words_zeroed_are_the_number_zero_without_a_sign(stored, dtype):
    model = Cells(dtype)
    with Zero(rate=1).draw(model, stored).applied(model):
        assert not any(words.any() for words in raw(model).values())


def test_random_words_depend_on_seed_trial_and_tensor_and_not_on_the_elements_value():
    def draw(target="parameters:bias", **given):
        return tuple(row.word for row in RandomWord(rate=1).draw(Cells(), targets=target, **given).rows)

    assert draw(seed=1) == draw(seed=1)
    drawn = [draw(), draw(seed=1), draw(trial=1), draw(seed=1, trial=1)]
    drawn.append(draw("parameters:weight")[:9])
    assert len(set(drawn)) == 5
    narrow = RandomWord(rate=1).draw(Cells(), "q3.4").rows
    assert max(row.word for row in narrow) > 200
    assert max(row.word for row in narrow) < 256
