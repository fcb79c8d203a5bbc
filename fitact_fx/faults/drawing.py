"""Which bits of a tensor go wrong: each with the same probability, independently of all others.

The same on every machine and NumPy version: only Philox's raw words are used, which NumPy promises not
to change, and everything made of them is integer arithmetic. Each tensor has its own stream, so it
gets the same faults whatever else the model holds and in whatever order tensors are drawn.

At the rates of interest the tensor's bits are cut into blocks of a power of two. One raw word per block
says how many of its bits flip, by comparing with exact binomial probabilities; more words say which,
until they are distinct. The last block reaches over the tensor's end and what falls there is dropped:
the bits being independent, those inside keep their distribution, and every block can use the same table.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Blocks hold 16 flips on average at most: tables stay short, and no probability in them underflows.
_MEAN_PER_BLOCK = 16
_WIDEST_BLOCK = 40  # log2 of its bits; a position must fit in 63 bits with room to spare
_DENSE = 1 / 64  # above this rate, a word for each bit
_PIECE = 1 << 20  # bits drawn at once in a dense draw; bounds the memory, changes nothing else
_TURNS = 8  # of the Feistel network; four make it as good as random, and small halves want more
_PRECISION = 192  # bits behind the point while a table is made; the table itself keeps 64

Positions = NDArray[np.int64]
Words = NDArray[np.uint64]


class _Key(np.random.bit_generator.ISeedSequence):
    """Gives Philox its key as it is. `Philox(key=...)` makes the same stream, and asks the system for entropy first."""

    def __init__(self, key: Words) -> None:
        self.key = key

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> Words:
        """The key, which is what Philox asks for."""
        return self.key


def stream(seed: int, trial: int, name: str) -> np.random.Philox:
    """The raw words that belong to one tensor in one trial."""
    text = f"fitact_fx.faults/1/{seed}/{trial}/{name}"
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Philox(_Key(np.frombuffer(digest, "<u8").astype(np.uint64)))  # type: ignore[arg-type]


def draw_positions(words: np.random.Philox, total: int, rate: float) -> Positions:
    """Which of `total` bits flip when each does with probability `rate` in [0, 1]; ascending."""
    if rate == 0 or total == 0:
        return np.empty(0, np.int64)
    if rate > _DENSE:
        return _each_on_its_own(words, total, rate)
    width, table = _count_table(rate)
    blocks = -(-total >> width)
    counts = np.searchsorted(table, words.random_raw(blocks), side="right")
    positions = _distinct(words, counts, width)
    return positions[: np.searchsorted(positions, total)]


def draw_count(words: np.random.Philox, total: int, count: int) -> Positions:
    """`count` different ones of `total` positions, every such set equally likely; ascending."""
    if 2 * count > total:  # few are left out: draw those
        return np.setdiff1d(np.arange(total), draw_count(words, total, total - count), assume_unique=True)
    unused = np.uint64(64 - max(1, (total - 1).bit_length()))
    found = np.empty(0, np.int64)
    # What falls outside or came before is drawn anew, and only that: every set of positions stays equally likely.
    while missing := count - len(found):
        fresh = (words.random_raw(missing) >> unused).astype(np.int64)
        found = np.unique(np.concatenate([found, fresh[fresh < total]]))
    return found


def permuted(seed: int, name: str, total: int, index: int) -> int:
    """Where `index` stands in a random order of `total` positions; each seed and name has an order of its own.

    A Feistel network over the next power of four, walked until it comes out below `total`: any part of the order can
    be had without the rest.
    """
    if not 0 <= index < total:
        raise ValueError(f"position {index} is none of {total}")
    half = max(1, (max(total - 1, 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for turn in range(_TURNS):
            text = f"fitact_fx.faults/order/1/{seed}/{name}/{turn}/{right}"
            mixed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
            left, right = right, left ^ (mixed & low)
        index = left << half | right
        if index < total:
            return index


def _each_on_its_own(words: np.random.Philox, total: int, rate: float) -> Positions:
    """One raw word per bit: dear, but in a dense draw hardly any position would be distinct at once."""
    flipped, whole = rate.as_integer_ratio()
    last = np.uint64((flipped << 64) // whole - 1)  # the last raw word that means a flip: all do at rate 1
    pieces = [
        start + np.flatnonzero(words.random_raw(min(_PIECE, total - start)) <= last)
        for start in range(0, total, _PIECE)
    ]
    return np.concatenate(pieces)


def _distinct(words: np.random.Philox, counts: NDArray[np.intp], width: int) -> Positions:
    """`counts[i]` different positions out of block i, every such set equally likely; ascending."""
    found = np.empty(0, np.int64)
    missing = counts
    # Drawing anew what came twice, and only that, leaves every set of positions equally likely.
    while wanted := int(missing.sum()):
        block = np.repeat(np.arange(len(counts), dtype=np.int64), missing)
        within = (words.random_raw(wanted) >> np.uint64(64 - width)).astype(np.int64)
        complete = len(found) + wanted
        found = np.unique(np.concatenate([found, (block << width) | within]))
        if len(found) == complete:
            break
        missing = counts - np.bincount(found >> width, minlength=len(counts))
    return found


@lru_cache(maxsize=256)
def _count_table(rate: float) -> tuple[int, Words]:
    """log2 of the block's bits, and for k = 0, 1, ... P(at most k flips in a block) in units of 2**-64.

    `rate` in (0, 1/64]. Probabilities follow P(k+1) = P(k) * (n-k) * p / ((k+1) * (1-p)) in integers.
    """
    flipped, whole = rate.as_integer_ratio()
    width = 0
    while width < _WIDEST_BLOCK and flipped << (width + 1) <= _MEAN_PER_BLOCK * whole:
        width += 1
    probability = ((whole - flipped) << _PRECISION) // whole
    for _ in range(width):  # (1-p)**n, n being a power of two
        probability = probability * probability >> _PRECISION
    size, count, total, table = 1 << width, 0, 0, []
    while probability >> (_PRECISION - 64) or count <= _MEAN_PER_BLOCK:
        total += probability
        table.append(total >> (_PRECISION - 64))
        probability = probability * (size - count) * flipped // ((count + 1) * (whole - flipped))
        count += 1
    return width, np.array(table, np.uint64)
