"""Everything that can be said of a campaign, each with its form: the same in a TOML file, as flags, and in a store."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

from fitact_fx.fault_words import bits_in

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


@dataclass(frozen=True)
class Form:
    """What the value of a key looks like. `read` gives the value that is kept, ValueError or TypeError for another."""

    name: str
    read: Callable[[Any], Any]


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise TypeError
    return float(value)


def _yes(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _several(read: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    """One value counts as a list of one; a list of none says nothing, and is a mistake."""

    def read_all(value: Any) -> list[Any]:
        found = [read(each) for each in (value if isinstance(value, list) else [value])]
        if not found:
            raise ValueError
        return found

    return read_all


def _bits(value: Any) -> list[int | str]:
    return [bit for each in (value if isinstance(value, list) else [value]) for bit in _bit(each)]


def _bit(value: Any) -> list[int | str]:
    return bits_in(value) if isinstance(value, str) else [_whole(value)]


def _size(value: Any) -> int:
    """`512MiB` -> bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([A-Za-z]*)", str(value).strip())
    if isinstance(value, bool) or found is None or found[2].upper() not in _UNITS:
        raise ValueError
    return int(float(found[1]) * _UNITS[found[2].upper()])


TEXT = Form("text", _text)
WHOLE = Form("a whole number", _whole)
NUMBER = Form("a number", _number)
YES = Form("true or false", _yes)
TEXTS = Form("text, or a list of texts", _several(_text))
NUMBERS = Form("a number, or a list of numbers", _several(_number))
BITS = Form("a field such as 'exponent', the number of a bit, or a list of these", _bits)
SIZE = Form("a size such as '512MiB', or a number of bytes", _size)


@dataclass(frozen=True)
class Key:
    """One thing that can be said: its name in a file, and as a flag (for true or false two: yes, and no)."""

    name: str
    form: Form
    flags: tuple[str, ...]
    metavar: str
    help: str
    group: str


def _keys(group: str, *rows: tuple[str, Form, str, str, str]) -> tuple[Key, ...]:
    return tuple(
        Key(name, form, tuple(flags.split()), metavar, told, group) for name, form, flags, metavar, told in rows
    )


MODELS = "models"
DATA = "data"
QUESTION = "faults"
LENGTH = "how long"
WHERE = "where and how"
PRINTED = "what is written"
SPEC = "torchvision:NAME, or package.module:factory (called without arguments)"

DATA_FORMS = """digits (512 handwritten ones), cifar10:FILE.npz (the test part, normalised), FILE.npz with arrays as the
model takes them, or package.module:factory, which gives (inputs, labels) or a list of batches"""
KINDS = """rates: accuracy at each bit error rate (default); single: one fault per trial, drawn from each stratum;
exhaustive: every place once"""

KEYS: tuple[Key, ...] = (
    *_keys(
        MODELS,
        ("model", TEXT, "--model", "SPEC", f"of every variant that names none: {SPEC}"),
        ("weights", TEXT, "--weights", "FILE", "of every variant that names none: trained weights, a safetensors file"),
    ),
    *_keys(
        DATA,
        (
            "data",
            TEXT,
            "--data",
            "DATA",
            DATA_FORMS,
        ),
        ("inputs", TEXT, "--inputs", "KEY", "the array of inputs in FILE.npz (default: x, images or inputs)"),
        ("labels", TEXT, "--labels", "KEY", "the array of labels (default: y or labels; none: SDC and DUE only)"),
        ("samples", WHOLE, "--samples", "N", "measure on the first N only"),
        ("batch", WHOLE, "--batch", "N", "samples per batch (default: 256, or as the factory made them)"),
    ),
    *_keys(
        QUESTION,
        (
            "kind",
            TEXT,
            "--kind",
            "KIND",
            KINDS,
        ),
        ("rates", NUMBERS, "--rate", "R", "a bit error rate such as 1e-6, once per rate"),
        ("per", TEXT, "--per", "PART", "of single: network (default), tensor, bit or site is a stratum"),
        ("margin", NUMBER, "--margin", "E", "of single: to how much a share is to be known (default: 0.01)"),
        ("fault", TEXT, "--fault", "NAME", "the fault model, as in `fitact-fx faults` (default: bit-flip)"),
        ("bits", BITS, "--bits", "BITS", "only these: a field, numbers, or both, such as exponent or 30,31"),
        ("width", WHOLE, "--width", "W", "adjacent bits of a burst"),
        ("format", TEXT, "--format", "NAME", "how numbers are stored (default: q15.16)"),
        (
            "targets",
            TEXTS,
            "--target",
            "KIND[:GLOB]",
            "what is hit, such as parameters:conv*; once per kind or glob (default: parameters, and bounds at a rate)",
        ),
        ("at", TEXTS, "--at", "GLOB", "hit activations of these names in place of memory; once per glob"),
        ("where", TEXT, "--where", "SIDE", "with --at: before (the default) or after the bound"),
        (
            "permanent",
            YES,
            "--permanent --transient",
            "",
            "with --at: faults hit the same element of every sample (the default), or each a sample of its own",
        ),
        ("seed", WHOLE, "--seed", "S", "of everything that is drawn (default: 0)"),
    ),
    *_keys(
        LENGTH,
        ("trials", WHOLE, "--trials", "N", "draws per cell (default: 100; single: what the margin needs)"),
        ("until", NUMBER, "--until", "H", "end a cell early, once its mean is known to +-H, such as 0.01"),
        ("minimum", WHOLE, "--minimum", "N", "with --until: but not before so many draws (default: 30)"),
        ("measure", TEXT, "--measure", "NAME", "what --until looks at: accuracy (default), sdc1, sdc5 or due"),
        ("confidence", NUMBER, "--confidence", "C", "of every interval (default: 0.95)"),
    ),
    *_keys(
        WHERE,
        ("workers", WHOLE, "--workers", "N", "processes of this machine (default: 1)"),
        (
            "scheduler",
            TEXT,
            "--scheduler",
            "ADDRESS",
            "a Dask scheduler such as tcp://host:8786, whose workers compute",
        ),
        ("suffix_memory", SIZE, "--suffix-memory", "SIZE", "for clean values kept, per process (default: 1GiB)"),
        (
            "suffixes",
            YES,
            "--suffixes --no-suffixes",
            "",
            "re-run only what depends on a fault (default), or everything",
        ),
        ("skip", YES, "--skip --no-skip", "", "run nothing where a fault provably changes nothing (default), or all"),
        ("threads", WHOLE, "--threads", "N", "per process (default: 1); another number is another campaign"),
        ("compile", YES, "--compile --no-compile", "", "compile each variant once; rounds otherwise (default: do not)"),
    ),
    *_keys(
        PRINTED,
        ("store", TEXT, "--store", "FILE", "the campaign's file: made, or gone on with if it is there"),
        ("html", TEXT, "--html", "FILE", "also write the report as a page"),
    ),
)
