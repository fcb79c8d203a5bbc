"""Calls as a table that a person can read, however many alike there are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from fitact_fx.calls import PASSES_ON, Call

# A number that is a whole word of a name: `layers.3.add`, `encoder_layer_3.add`, `relu_1`, but not `conv1`.
_NUMBER = re.compile(r"(?<![^\W_])\d+(?![^\W_])")


@dataclass(frozen=True)
class Group:
    """Calls that differ in numbers only, as those of the blocks of a network do: `layer*.*.add`."""

    name: str
    count: int
    operator: str
    source: str
    why: str


def alike(names: Sequence[str]) -> list[str]:
    """The names, those that differ in numbers only as one: `layer*.*.attn.softmax (12 x)`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_NUMBER.sub("*", name), []).append(name)
    return [_common(each) + (f" ({_times(len(each))})" if len(each) > 1 else "") for each in groups.values()]


def grouped(calls: Sequence[Call]) -> tuple[Group, ...]:
    """The calls in groups, in the order of their first calls; those that only pass on what they get come last."""
    alike: dict[tuple[str, ...], list[Call]] = {}
    for call in calls:
        key = (_NUMBER.sub("*", call.name), call.operator, call.source, _NUMBER.sub("*", call.why))
        alike.setdefault(key, []).append(call)
    groups = [
        Group(
            _common([call.name for call in each]),
            len(each),
            each[0].operator,
            each[0].source,
            _common([call.why for call in each]),
        )
        for each in alike.values()
    ]
    return tuple(sorted(groups, key=lambda group: group.why == PASSES_ON))


def table(calls: Sequence[Call], limit: int | None = None) -> str:
    """A heading for each reason, and a line below it for each group of calls that are as they are for that reason.

    With `limit`, so many groups at most.
    """
    groups = grouped(calls)
    shown = groups if limit is None else groups[:limit]
    sections = [
        f"{why}:\n{_lines([group for group in shown if group.why == why])}"
        for why in dict.fromkeys(group.why for group in shown)
    ]
    left = sum(group.count for group in groups) - sum(group.count for group in shown)
    return "\n\n".join([*sections, *([f"... and {left} more calls"] if left else [])])


def _lines(groups: Sequence[Group]) -> str:
    rows = [(f"  {group.name}", _times(group.count), _word(group.operator), _line(group.source)) for group in groups]
    return tabulate(rows, tablefmt="plain", disable_numparse=True, preserve_whitespace=True)


def _word(operator: str) -> str:
    """Without the package of a user's function: its line is beside it."""
    return operator.rpartition(".")[2]


def _line(source: str) -> str:
    """Without the function that the line is in: the code says more."""
    return re.sub(r", in [^:]+: ", ": ", source)


def _times(count: int) -> str:
    return "" if count == 1 else f"{count} x"


def _common(texts: Sequence[str]) -> str:
    """The texts, which differ in numbers only, as one: with a `*` for each number that is not the same in all."""
    numbers = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    same = iter([each[0] if len(set(each)) == 1 else "*" for each in numbers])
    return _NUMBER.sub(lambda found: next(same), texts[0])
