"""Formats against oracles: NumPy, ml_dtypes and `struct` for floats, whole numbers and fractions for the rest."""

import math
import struct
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from fitact_fx.errors import FaultError
from fitact_fx.faults import find_format

# What NumPy says of signalling NaNs, and of casts beyond the largest number: both are meant.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")

FLOATS = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
FIXED = [(15, 16), (7, 8), (0, 7), (31, 0), (3, 4), (0, 31), (0, 1)]
ALL = [*FLOATS, *(f"q{integer}.{fraction}" for integer, fraction in FIXED), "int8", "int8_per_channel"]
SPECIAL = [0.0, 1.0, 1e-45, 1.17e-38, 6e-8, 6.1e-5, 447.9, 464.0, 57344.0, 61440.0, 65519.0, 65520.0, 3.4028235e38]
NEAR_LIMITS = [32767.9, 32768.0, 32769.0, 1e9, 2147483520.0, 2147483648.0, 127.99, 128.0, math.inf, math.nan]
TIES = [(word + 0.5) / unit for unit in (1, 2, 16, 128, 256, 65536) for word in (0, 1, 2, 6, 7, 126, 127)]


def words_of(bits):
    """Every word of a narrow format, a million of a wide one with its extremes, in the type of `encode`."""
    if bits <= 16:
        return np.arange(2**bits).astype(f"uint{bits}").view(f"int{bits}")
    words = np.random.default_rng(1).integers(-(2**31), 2**31, 1_000_000).astype(np.int32)
    return np.append(words, np.array([-(2**31), 2**31 - 1, 0, -1, 0x7FA00001, -0x005FFFFF], np.int32))


def values_of_all_sizes(count=1_000_000):
    """float32 numbers: the special ones of both signs, any bits, and magnitudes that a model could have."""
    random = np.random.default_rng(0)
    special = np.array([*SPECIAL, *NEAR_LIMITS, *TIES], np.float32)
    any_bits = random.integers(0, 2**32, count // 2, dtype=np.uint32).view(np.float32)
    usual = random.standard_normal(count // 2) * 10.0 ** random.integers(-8, 8, count // 2)
    return np.concatenate([special, -special, any_bits, usual.astype(np.float32)])


def ties_between(dtype):
    """The float32 numbers halfway between two neighbours of a narrower type, and those just beside."""
    words = np.arange(2 ** (8 * np.dtype(dtype).itemsize - 1)).astype(f"uint{8 * np.dtype(dtype).itemsize}")
    numbers = words.view(dtype).astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    halfway = ((numbers[1:] + numbers[:-1]) / 2).astype(np.float32)
    around = [np.nextafter(halfway, np.float32(end)) for end in (-np.inf, np.inf)]
    return np.concatenate([halfway, -halfway, *around])


def float_numbers(values, dtype):
    """NumPy's and ml_dtypes' own cast, except that what is not NaN never becomes it, nor infinite."""
    numbers = values.astype(dtype).astype(np.float64)
    largest = float(ml_dtypes.finfo(dtype).max)
    numbers = np.where(np.isfinite(numbers), numbers, np.copysign(largest, values))
    if dtype is not ml_dtypes.float8_e4m3fn:
        numbers = np.where(np.isinf(values), values.astype(np.float64), numbers)
    return np.where(np.isnan(values), np.nan, numbers)


def assert_same_numbers(found, expected):
    """Equal, zeros also in sign; any NaN equals any other."""
    found = found.double().numpy()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found) & ~np.isnan(found), np.signbit(expected) & ~np.isnan(expected))


def fixed_word(value, integer, fraction):
    """Nearest, ties to even (as Python's `round` of a Fraction), saturating, NaN to 0."""
    smallest, largest = -(2 ** (integer + fraction)), 2 ** (integer + fraction) - 1
    if math.isnan(value):
        return 0
    if math.isinf(value):
        return largest if value > 0 else smallest
    return min(max(round(Fraction(value) * 2**fraction), smallest), largest)


def fixed_words(values, integer, fraction):
    """The same for many finite float32 numbers, by whole numbers alone: each is 24 bits and a shift."""
    mantissas, exponents = np.frexp(values)
    whole = (mantissas * 2**24).astype(np.int64)
    left, right = np.clip(exponents - 24 + fraction, 0, 38), np.clip(24 - exponents - fraction, 0, 60)
    floors = (whole << left) >> right
    rests, unit = 2 * (whole - (floors << right)), np.int64(1) << right
    nearest = floors + np.where(right > 0, (rests > unit) | ((rests == unit) & (floors % 2 == 1)), False)
    return np.clip(nearest, -(2 ** (integer + fraction)), 2 ** (integer + fraction) - 1)


@pytest.mark.parametrize(("name", "dtype"), FLOATS.items())
def test_a_float_word_stands_for_the_number_with_these_bits(name, dtype):
    stored = find_format(name)
    words = words_of(stored.bits)
    expected = words.view(dtype).astype(np.float64)
    assert_same_numbers(stored.decode(torch.from_numpy(words)), expected)


@pytest.mark.parametrize("name", FLOATS)
def test_the_words_of_a_tensor_of_the_format_itself_are_its_bits(name):
    stored = find_format(name)
    words = torch.from_numpy(words_of(stored.bits))
    tensor = torch.frombuffer(bytearray(words.numpy().tobytes()), dtype=stored.dtypes[0])
    assert stored.encode(tensor).dtype == words.dtype
    assert torch.equal(stored.encode(tensor), words)
    assert torch.equal(stored.encode(stored.decode(words)), words)


@pytest.mark.parametrize(("letter", "name"), [("f", "float32"), ("e", "float16")])
def test_single_and_half_words_are_those_of_struct(letter, name):
    values = [value for value in SPECIAL if letter == "f" or value < 65520]
    words = find_format(name).encode(torch.tensor(values, dtype=torch.float32))
    assert words.tolist() == [
        struct.unpack("<i" if letter == "f" else "<h", struct.pack(f"<{letter}", v))[0] for v in values
    ]


@pytest.mark.parametrize("name", [name for name in FLOATS if name != "float32"])
def test_a_wider_value_goes_to_the_nearest_float_and_saturates(name):
    stored = find_format(name)
    values = np.concatenate([values_of_all_sizes(), ties_between(FLOATS[name])])
    assert_same_numbers(stored.decode(stored.encode(torch.from_numpy(values))), float_numbers(values, FLOATS[name]))


@pytest.mark.parametrize("wider", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["float8_e4m3", "float8_e5m2"])
def test_every_half_goes_to_the_nearest_float8_and_saturates(name, wider):
    stored = find_format(name)
    values = words_of(16).view(FLOATS[wider]).astype(np.float32)
    halves = torch.from_numpy(words_of(16)).view(getattr(torch, wider))
    assert_same_numbers(stored.decode(stored.encode(halves)), float_numbers(values, FLOATS[name]))


@pytest.mark.parametrize(
    ("name", "words"),  # of 1e9 (beyond all but bfloat16), -infinity, NaN, the smallest subnormal and half of it
    {
        "float16": [0x7BFF, 0xFC00, 0x7E00, 1, 0],
        "bfloat16": [0x4E6E, 0xFF80, 0x7FC0, 1, 0],
        "float8_e4m3": [0x7E, 0xFE, 0x7F, 1, 0],
        "float8_e5m2": [0x7B, 0xFC, 0x7E, 1, 0],
    }.items(),
)
def test_the_words_at_the_ends_of_a_float_format_are_those_of_its_standard(name, words):
    stored = find_format(name)
    tiny = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float8_e4m3": 2.0**-9, "float8_e5m2": 2.0**-16}[name]
    found = stored.encode(torch.tensor([1e9, -math.inf, math.nan, tiny, tiny / 2]))
    assert [word % 2**stored.bits for word in found.tolist()] == words


@pytest.mark.parametrize(("integer", "fraction"), FIXED)
def test_fixed_point_rounds_to_the_nearest_word_and_saturates(integer, fraction):
    stored = find_format(f"q{integer}.{fraction}")
    few = values_of_all_sizes(5_000)
    assert stored.encode(torch.from_numpy(few)).tolist() == [fixed_word(v, integer, fraction) for v in few.tolist()]
    doubles = [(word + 0.5) / 2**fraction for word in (0, 1, 2**30 - 1, 2**30)]  # ties that float32 does not hold
    words = stored.encode(torch.tensor(doubles, dtype=torch.float64))
    assert words.tolist() == [fixed_word(value, integer, fraction) for value in doubles]
    many = values_of_all_sizes()
    many = many[np.isfinite(many)]
    assert np.array_equal(stored.encode(torch.from_numpy(many)).numpy(), fixed_words(many, integer, fraction))


@pytest.mark.parametrize(("integer", "fraction"), FIXED)
def test_fixed_point_words_decode_to_exactly_what_they_stand_for(integer, fraction):
    stored = find_format(f"q{integer}.{fraction}")
    words = words_of(32) >> (32 - stored.bits)
    values = stored.decode(torch.from_numpy(words))
    assert np.array_equal(values.numpy(), np.ldexp(words.astype(np.float64), -fraction))
    assert torch.equal(stored.encode(values), torch.from_numpy(words))


def test_a_flipped_sign_bit_of_a_narrow_format_makes_the_value_negative():
    stored = find_format("q3.4")
    word = stored.encode(torch.tensor([1.0])) ^ (1 << 7)
    assert stored.decode(word).item() == 1.0 - 8.0


@pytest.mark.parametrize("name", ["int8", "int8_per_channel"])
def test_int8_words_are_the_nearest_multiples_of_the_scale_of_their_tensor_or_channel(name):
    values = values_of_all_sizes()[:1_000_000].reshape(1000, 10, 100)
    values[3], values[4], values[5] = 0, np.nan, np.clip(np.nan_to_num(values[5]), -1, 1)
    stored = find_format(name)
    scale = stored.scale(torch.from_numpy(values))
    finite = np.where(np.isfinite(values), np.abs(values), 0).astype(np.float64)
    largest = finite.reshape(1000, -1).max(1).reshape(1000, 1, 1) if name == "int8_per_channel" else finite.max()
    expected = np.where(largest > 0, largest / 127, 1)
    assert scale.dtype == torch.float64
    np.testing.assert_array_equal(scale.numpy(), expected)
    words = stored.encode(torch.from_numpy(values), scale)
    assert words.dtype == torch.int8
    nearest = np.clip(np.rint(np.nan_to_num(values.astype(np.float64), nan=0.0) / expected), -127, 127)
    np.testing.assert_array_equal(words.numpy(), nearest)


def test_int8_rounds_ties_to_even_and_saturates():
    values = torch.tensor([254.0, 1.0, 3.0, 5.0, -1.0, -3.0, 1.001, math.inf, -math.inf, math.nan])
    stored = find_format("int8")
    assert stored.scale(values).item() == 2.0
    assert stored.encode(values, stored.scale(values)).tolist() == [127, 0, 2, 2, 0, -2, 1, 127, -127, 0]
    assert stored.encode(torch.tensor([300.0]), stored.scale(values)).item() == 127


@pytest.mark.parametrize("largest", [1.0, 0.3, 3.4028235e38, 1.17e-38, 1e-43, 1e-45])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_int8_gives_back_the_multiples_of_its_scale(largest, dtype):
    stored = find_format("int8")
    scale = stored.scale(torch.tensor([largest], dtype=dtype))
    words = torch.arange(-127, 128, dtype=torch.int8)
    values = (words.double() * scale).to(dtype)
    again = stored.encode(values, scale)
    assert torch.equal(stored.decode(again, scale).to(dtype), values)
    assert torch.equal(again, words) or largest < 1e-42  # subnormals lie further apart than multiples
    assert stored.decode(torch.tensor([-128], dtype=torch.int8), scale).item() == -128 * scale.item()


def test_a_tensor_of_one_dimension_has_one_int8_scale_and_a_matrix_one_per_row():
    stored = find_format("int8_per_channel")
    matrix = torch.tensor([[127.0, 1.0], [-254.0, math.inf], [0.0, math.nan]])
    assert stored.scale(matrix).tolist() == [[1.0], [2.0], [1.0]]
    assert torch.equal(stored.scale(matrix[:, 0]), torch.tensor(2.0, dtype=torch.float64))
    assert stored.scale(torch.zeros(0, 3)).item() == 1.0
    assert stored.scale(torch.tensor(5e-324, dtype=torch.float64)).item() == 1.0


def test_an_int8_tensor_is_its_own_words():
    stored, tensor = find_format("int8"), torch.from_numpy(words_of(8))
    assert stored.scale(tensor) is None
    assert torch.equal(stored.encode(tensor), tensor)
    assert torch.equal(stored.decode(tensor), tensor)
    with pytest.raises(FaultError, match=r"^int8 words need a scale; make it from the whole tensor with scale\(tensor"):
        stored.encode(torch.ones(1))


@pytest.mark.parametrize("name", ALL)
def test_the_fields_of_a_word_cover_every_bit_once_with_the_sign_last(name):
    stored = find_format(name)
    assert [bit for field in stored.fields.values() for bit in field] == list(range(stored.bits))
    assert stored.fields["sign"] == range(stored.bits - 1, stored.bits)
    assert all(stored.fields.values())


@pytest.mark.parametrize(
    ("name", "widths"),
    {"float32": [23, 8], "float16": [10, 5], "bfloat16": [7, 8], "float8_e4m3": [3, 4], "float8_e5m2": [2, 5]}.items(),
)
def test_a_float_has_the_mantissa_and_exponent_of_its_standard(name, widths):
    assert [len(field) for field in find_format(name).fields.values()] == [*widths, 1]


@pytest.mark.parametrize("name", [*FLOATS, "q7.8", "q0.7", "q3.4"])
def test_every_type_of_a_format_gives_back_each_word_written_to_it(name):
    stored = find_format(name)
    words = torch.from_numpy(words_of(stored.bits)).to(stored.encode(torch.zeros(1)).dtype)
    numbers = stored.decode(words)
    for dtype in stored.dtypes:
        written = numbers.to(dtype)
        assert_same_numbers(written, numbers.double().numpy())
        known = ~written.isnan()
        assert torch.equal(stored.encode(written)[known], words[known])


def test_compiled_formats_give_the_same_bits_as_eager_ones():
    values = torch.from_numpy(values_of_all_sizes(2_000)).reshape(2, -1)
    formats = [find_format(name) for name in ALL]

    def words_and_numbers(values):
        found = []
        for stored in formats:
            scale = stored.scale(values)
            words = stored.encode(values, scale)
            numbers = stored.decode(words ^ 1, scale)
            bits = numbers.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[numbers.itemsize])
            # The payload of a NaN that is cast to a wider type is the cast's, not the format's.
            found += [words, bits, numbers.to(values.dtype).nan_to_num(nan=0.1).view(torch.int32)]
        return found

    compiled = torch.compile(words_and_numbers, fullgraph=True, backend="inductor")(values)
    for one, two in zip(compiled, words_and_numbers(values), strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)


def test_the_numbers_of_a_format_carry_no_gradient():
    weight = torch.ones(2, 2, requires_grad=True)
    for stored in map(find_format, ALL):
        scale = stored.scale(weight)
        assert not stored.decode(stored.encode(weight, scale), scale).requires_grad


def test_an_unknown_format_is_refused_with_the_valid_ones():
    with pytest.raises(FaultError) as error:
        find_format("floaty")
    assert str(error.value) == (
        "unknown format 'floaty'; choose one of bfloat16, float16, float32, float8_e4m3, float8_e5m2, "
        "int8, int8_per_channel, q<integer bits>.<fraction bits> such as q15.16"
    )


def test_a_format_is_found_by_its_name_and_by_that_of_torch():
    assert [find_format(name).name for name in ALL] == ALL
    assert find_format("float8_e4m3fn") == find_format("float8_e4m3")


def test_a_fixed_point_format_beyond_32_bits_is_refused():
    with pytest.raises(FaultError, match=r"^q16\.16 has 33 bits; a fixed point format has 2 to 32, one the sign$"):
        find_format("q16.16")
