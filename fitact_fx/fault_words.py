"""A fault model in the words of a command line: its name, and the options that it takes."""

import inspect
from collections.abc import Callable, Mapping

from fitact_fx.errors import FaultError
from fitact_fx.faults import FaultModel, find_fault_model


def bits_in(text: str) -> list[int | str]:
    """`exponent,31` -> ["exponent", 31]: fields of the format and numbers of bits."""
    return [int(bit) if bit.isdecimal() else bit for bit in text.split(",")]


def fault_maker(name: str, options: Mapping[str, object]) -> Callable[..., FaultModel]:
    """What makes the fault model of that name; FaultError if it has no such options, or needs others as well."""
    make = find_fault_model(name)
    taken = inspect.signature(make).parameters
    for option in options:
        if option not in taken:
            raise FaultError(f"the fault {name!r} has no {option};\n  leave out --{option}, or choose another --fault")
    for option, parameter in taken.items():
        if parameter.default is parameter.empty and option not in options:
            raise FaultError(f"the fault {name!r} needs a {option};\n  add --{option}")
    return make
