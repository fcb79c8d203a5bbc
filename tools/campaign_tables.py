"""How the page of tools/measure_campaigns.py writes figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

COMMAND = "python tools/measure_campaigns.py --data DIR"


def conditions(name: str, part: Mapping[str, Any]) -> str:
    """When and on what a part was measured."""
    quick = " --quick" if part["quick"] else ""
    warning = " **A quick look: these figures mean nothing.**" if part["quick"] else ""
    return (
        f"`{COMMAND} --parts {name}{quick}`: {part['seconds']} s on {part['measured']}; Python {part['python']}, "
        f"torch {part['torch']}, torchvision {part['torchvision']}; {part['cores']} {part['machine']} cores, load "
        f"{part['load']} at the end.{warning}"
    )


def goal(reached: bool) -> str:
    """Behind a figure that has a goal."""
    return "" if reached else " (missed)"


def ms(seconds: float) -> str:
    """Milliseconds, three digits."""
    return f"{1e3 * seconds:,.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def times(ratio: float) -> str:
    """A ratio, two digits behind the point where it is small."""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.2f}"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Text as it is, in Markdown."""
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
