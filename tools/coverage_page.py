"""The page of tools/coverage_sweep.py: counts, the table, and a sentence for everything out of the ordinary."""

import platform
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version
from textwrap import shorten

from coverage_case import matching
from coverage_check import Row
from tabulate import tabulate

FRONTENDS = ("symbolic", "export", "partial")
LIBRARIES = ("torch", "torchvision", "timm", "transformers")

EXCEPTIONS: dict[str, str] = {}
"""suite/name globs of models that do otherwise than promised, and why, in words."""

EXCLUDED = {
    "torchvision/quantized_*": (
        "their weights and activations are integers behind operators of their own, where there is no activation to "
        "put a bound behind; their float twins are in the table"
    ),
    "torchvision/*.backbone": (
        "of a detector, the backbone: what follows it picks boxes by their values, which no graph holds, and is "
        "traced in part"
    ),
}
"""What is left out of the sweep, and why."""

INTRODUCTION = """\
All of torchvision, of timm one small model per family (a module of `timm.models` that has entry points), and common \
Hugging Face encoders with small configurations: random weights, evaluation mode, batches of two, one bound per \
layer. `front end`: how the model became a graph, `symbolic` (torch.fx), `export` (torch.export) or `partial` (what \
of it could). `unprotected calls`: the rows that `fitact_fx.coverage(hard).open` has. `equal at infinite bounds`: \
with every bound infinite the outputs are the model's own, bit for bit; under `export`, those of the exported model, \
and the number, if not zero, is how far the model in eager mode is from that, relative to the greatest output. \
`compile agrees`: `torch.compile` gives the same within 1e-3 of each value and of the greatest one."""


def page(rows: Sequence[Row], command: str, backend: str) -> str:
    """The whole page."""
    versions = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    parts = [
        "# Which models can be hardened",
        f"`{command}`, a process of one thread per model; Python {platform.python_version()}, {versions}.",
        f"{INTRODUCTION} The backend is `{backend}`.",
        summary(rows),
        table(rows),
        "## Exceptions\n\n" + ("\n".join(exceptions(rows)) or "None."),
        "## Left out\n\n" + "\n".join(f"- `{glob}`: {why}." for glob, why in EXCLUDED.items()),
    ]
    return "\n\n".join(parts) + "\n"


def summary(rows: Sequence[Row]) -> str:
    """The counts of each suite."""
    counts = []
    for suite in dict.fromkeys(row.suite for row in rows):
        of_suite = [row for row in rows if row.suite == suite]
        used = Counter(row.frontend for row in of_suite)
        counts.append(
            {
                "suite": suite,
                "models": len(of_suite),
                **{frontend: used[frontend] for frontend in FRONTENDS},
                "none": used[None],
                "all as promised": sum(row.as_promised for row in of_suite),
            }
        )
    return tabulate(counts, headers="keys", tablefmt="github")


def table(rows: Sequence[Row]) -> str:
    """One line per model."""
    lines = [
        {
            "model": f"{row.suite}/{row.model}",
            "front end": row.frontend or "-",
            "sites": row.sites,
            "unprotected calls": "-" if row.unprotected is None else row.unprotected,
            "equal at infinite bounds": _equal(row),
            "compile agrees": _said(row.agrees),
            "seconds": f"{row.seconds:.0f}",
            "result": "as promised" if row.as_promised else shorten(_problem(row), 100).replace("|", "/"),
        }
        for row in rows
    ]
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)


def exceptions(rows: Sequence[Row]) -> list[str]:
    """What went otherwise than promised: the explained globs with their models, then what nothing explains."""
    failed = {f"{row.suite}/{row.model}": row for row in rows if not row.as_promised}
    lines = []
    for glob, why in EXCEPTIONS.items():
        named = [path for path in failed if fnmatchcase(path, glob)]
        if named:
            lines.append(f"- `{glob}` ({len(named)}): {why}.")
    return lines + [
        f"- `{path}`, not explained: {_problem(row)}."
        for path, row in failed.items()
        if matching(EXCEPTIONS, path) is None
    ]


def _problem(row: Row) -> str:
    return "; ".join(row.problems).rstrip(".,;:") or "no activation was found"


def _equal(row: Row) -> str:
    eager = f", eager within {row.from_eager:.1g}" if row.from_eager and row.equal else ""
    return _said(row.equal) + eager


def _said(held: bool | None) -> str:
    return {None: "-", True: "yes", False: "no"}[held]
