"""Oracles for faults: how formats store a number, by struct, fractions, NumPy and ml_dtypes, one word at a time."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import ml_dtypes
import numpy as np
import torch
from torch import nn

SHAPE = (6, 5, 4)
RAW = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Oracle:
    """How a number becomes an unsigned word and back, one at a time."""

    bits: int
    word: Callable[[float], int]
    number: Callable[[int], float]


def single(values):
    return Oracle(
        32,
        lambda value: struct.unpack("<I", struct.pack("<f", value))[0],
        lambda word: struct.unpack("<f", struct.pack("<I", word))[0],
    )


def floating(dtype):
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    word = lambda value: int(np.array(value).astype(dtype).view(unsigned))  # noqa: E731
    return lambda values: Oracle(
        8 * unsigned.itemsize, word, lambda word: float(np.array(word, unsigned).view(dtype).astype(np.float64))
    )


def fixed(integer, fraction):
    bits = 1 + integer + fraction
    word = lambda value: round(Fraction(value) * 2**fraction) % 2**bits  # noqa: E731
    signed = lambda word: word - 2**bits if word >= 2 ** (bits - 1) else word  # noqa: E731
    return lambda values: Oracle(bits, word, lambda word: float(Fraction(signed(word), 2**fraction)))


def int8(values):
    scale = np.abs(values).max() / 127
    return Oracle(
        8, lambda value: int(np.rint(value / scale)) % 256, lambda word: float(np.uint8(word).view("i1")) * scale
    )


def flipped(oracle, value, bits):
    """What a float32 value becomes when these bits of its word flip."""
    word = oracle.word(value)
    for bit in bits:
        word ^= 1 << bit
    return float(np.float32(oracle.number(word)))


ORACLES = {
    "float32": single,
    "float16": floating(np.float16),
    "bfloat16": floating(ml_dtypes.bfloat16),
    "float8_e4m3": floating(ml_dtypes.float8_e4m3fn),
    "q15.16": fixed(15, 16),
    "q3.4": fixed(3, 4),
    "int8": int8,
}
CASES = [
    ("float32", torch.float32),
    ("float16", torch.float16),
    ("float16", torch.float32),
    ("bfloat16", torch.bfloat16),
    ("bfloat16", torch.float32),
    ("float8_e4m3", torch.float16),
    ("q15.16", torch.float32),
    ("q15.16", torch.float64),
    ("q3.4", torch.float32),
    ("int8", torch.float32),
]


class Cells(nn.Module):
    """Two tensors: all that a list can hit."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        random = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter((torch.rand(SHAPE, generator=random) * 6 - 3).to(dtype))
        self.bias = nn.Parameter((torch.rand(9, generator=random) - 0.5).to(dtype))


def raw(model):
    return {name: p.detach().clone().view(RAW[p.element_size()]) for name, p in model.named_parameters()}


def assert_holds(model, faults, clean, stored, changes):
    """Inside the block `changes[name, element](word)` and else the own bits; behind it, the own bits everywhere."""
    before = raw(model)
    with faults.applied(model):
        inside, values = (
            raw(model),
            {name: p.detach().double().flatten().clone() for name, p in model.named_parameters()},
        )
    for name, parameter in model.named_parameters():
        numbers = clean[name].double().flatten().tolist()
        oracle = ORACLES[stored](np.array(numbers))
        for element, number in enumerate(numbers):
            found = inside[name].flatten()[element].item()
            change = changes.get((name, element))
            if change is None:
                assert found == before[name].flatten()[element].item()
                continue
            word = change(oracle.word(number))
            if stored == str(parameter.dtype).removeprefix("torch."):
                assert found % 2**oracle.bits == word
            else:  # rounded once more, to the tensor's own type; any NaN is as good as another
                wanted = torch.tensor(oracle.number(word), dtype=torch.float64).to(parameter.dtype).double()
                assert struct.pack("<d", values[name][element].nan_to_num(7e77)) == struct.pack(
                    "<d", wanted.nan_to_num(7e77)
                )
    after = raw(model)
    assert all(torch.equal(after[name], words) for name, words in before.items())
