"""Errors and warnings. Every message names the place, the user's own source line and the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches


class FitactError(Exception):
    """Anything this library refuses; catch this one to catch them all."""


class TracingError(FitactError):
    """The model cannot be turned into a graph, or the graph would not do what the model does.

    `module` is the path of the module whose code is at fault, "" for the model itself, None if it is not known.
    """

    def __init__(self, message: str, module: str | None = None) -> None:
        super().__init__(message)
        self.module = module


class ExampleError(TracingError):
    """The model does not take the example inputs, whichever way it is traced."""


class SiteError(FitactError):
    """Something about one activation site: not found, not boundable, or given the wrong bound."""


class CalibrationError(FitactError):
    """Data that no bound can be learned from: empty, NaN, or of another shape."""


class RecipeError(FitactError):
    """A granularity, scheme, policy or saved file that this library does not know or that does not fit."""


class FaultError(FitactError):
    """A fault, format or fault list that cannot be drawn, read or applied."""


class CampaignError(FitactError):
    """A campaign that cannot be planned, run, resumed or read."""


class UncalibratedWarning(UserWarning):
    """A hardened model ran before its bounds were set: it protects nothing yet."""


class UnprotectedWarning(UserWarning):
    """A hardened model holds activations that could not be bounded."""


class CostlyWarning(UserWarning):
    """Bounds cost more than was allowed, on samples without faults.

    `harden(data=...)` tells it of a percentile or a share that was asked for, and any learning of bounds from so few
    samples that new ones go beyond them, or that move the outputs so far that nothing of what was learned is kept.
    """


def site_message(name: str, source: str, problem: str, remedy: str) -> str:
    """The house form: which site, on which line of the user's, what is wrong, what to do."""
    return f"site {name} ({source})\n  {problem};\n  {remedy}"


def known(word: str, name: object, names: object) -> str:
    """`unknown scheme 'x'; choose one of a, b`: the one sentence for a name that is not in a list."""
    return f"unknown {word} {name!r}; choose one of {', '.join(sorted(map(str, names)))}"  # type: ignore[call-overload]


def close_to(name: str, names: Iterable[str]) -> str:
    """` (close: layer1.0.conv1, ...)`, for a name or a glob that is not among `names`; nothing if none is close."""
    close = get_close_matches(name.replace("*", ""), list(names), cutoff=0.4)
    return f" (close: {', '.join(close)})" if close else ""
