"""Formats against oracles of a few lines: `struct` for float32, whole fractions for fixed point."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch

from fitact_fx.errors import FaultError
from fitact_fx.faults import find_format

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, 6.1e-5, 3.4e38, -3.4e38, math.inf, -math.inf, math.nan]
NEAR_LIMITS = [32767.9, 32768.0, -32768.0, -32769.0, 1e9]
TIES = [(word + 0.5) / 65536 for word in (0, 1, 2, 7, 8, -1, -2, -3)]


def float32_word(value):
    return struct.unpack("<i", struct.pack("<f", value))[0]


def fixed_word(value, integer, fraction):
    """Nearest, ties to even (as Python's `round` of a Fraction), saturating, NaN to 0."""
    smallest, largest = -(2 ** (integer + fraction)), 2 ** (integer + fraction) - 1
    if math.isnan(value):
        return 0
    if math.isinf(value):
        return largest if value > 0 else smallest
    return min(max(round(Fraction(value) * 2**fraction), smallest), largest)


def values_of_all_sizes():
    random = np.random.default_rng(0)
    spread = random.standard_normal(5_000) * 10.0 ** random.integers(-8, 8, 5_000)
    return torch.tensor([*SPECIAL, *NEAR_LIMITS, *TIES, *spread], dtype=torch.float32)


def random_words(bits):
    words = np.random.default_rng(1).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), 5_000)
    return torch.tensor([*words, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0, -1], dtype=torch.int32)


def test_float32_words_are_the_bits_in_memory():
    values = values_of_all_sizes()
    words = find_format("float32").encode(values)
    assert words.tolist() == [float32_word(value) for value in values.tolist()]


def test_float32_keeps_every_word_through_decode_and_encode():
    stored = find_format("float32")
    words = torch.cat([random_words(32), torch.tensor([0x7FA00001, -0x005FFFFF], dtype=torch.int32)])
    assert torch.equal(stored.encode(stored.decode(words)), words)


@pytest.mark.parametrize(("integer", "fraction"), [(15, 16), (0, 31), (31, 0), (7, 8), (3, 4), (0, 1)])
def test_fixed_point_rounds_to_the_nearest_word_and_saturates(integer, fraction):
    values = values_of_all_sizes()
    words = find_format(f"q{integer}.{fraction}").encode(values)
    assert words.tolist() == [fixed_word(value, integer, fraction) for value in values.tolist()]


@pytest.mark.parametrize(("integer", "fraction"), [(15, 16), (0, 31), (3, 4)])
def test_fixed_point_words_decode_to_exactly_what_they_stand_for(integer, fraction):
    stored = find_format(f"q{integer}.{fraction}")
    words = random_words(stored.bits)
    values = stored.decode(words)
    assert [Fraction(value) for value in values.tolist()] == [Fraction(w, 2**fraction) for w in words.tolist()]
    assert torch.equal(stored.encode(values), words)


def test_a_flipped_sign_bit_of_a_narrow_format_makes_the_value_negative():
    stored = find_format("q3.4")
    word = stored.encode(torch.tensor([1.0])) ^ (1 << 7)
    assert stored.decode(word).item() == 1.0 - 8.0


def test_an_unknown_format_is_refused_with_the_valid_ones():
    with pytest.raises(FaultError) as error:
        find_format("floaty")
    expected = "unknown format 'floaty'; choose one of float32, q<integer bits>.<fraction bits> such as q15.16"
    assert str(error.value) == expected


def test_a_fixed_point_format_beyond_32_bits_is_refused():
    with pytest.raises(FaultError, match=r"^q16\.16 has 33 bits; a fixed point format has 2 to 32, one the sign$"):
        find_format("q16.16")
