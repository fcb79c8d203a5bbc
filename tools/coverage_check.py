"""One model of tools/coverage_sweep.py, checked: `python tools/coverage_check.py timm/resnet10t` prints its row.

A process of its own per model: what one of them crashes, fills or leaves behind, no other sees.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from coverage_case import Case
from torch import Tensor
from torch.utils import _pytree as pytree

import fitact_fx

RELATIVE = 1e-3
"""What a compiled model may differ by: of each value, and of the greatest value of its output."""


@dataclass
class Row:
    """What one model showed; None where a check was not reached. `problems` says what went otherwise."""

    suite: str
    model: str
    frontend: str | None = None
    sites: int = 0
    unprotected: int | None = None
    equal: bool | None = None
    from_eager: float | None = None
    agrees: bool | None = None
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def as_promised(self) -> bool:
        """Every check was reached and held."""
        return not self.problems and self.sites > 0 and self.equal is True and self.agrees is True


def checked(case: Case, backend: str) -> Row:
    """All checks on one model; an error ends them and becomes a sentence of the row."""
    row = Row(case.suite, case.name)
    started = time.perf_counter()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check(case, backend, row)
    except Exception as error:  # noqa: BLE001  whatever a model raises is its row's result
        row.problems.append(in_one_line(error))
    row.seconds = round(time.perf_counter() - started, 1)
    return row


def _check(case: Case, backend: str, row: Row) -> None:
    model, inputs = case.build()
    hard = fitact_fx.harden(model, granularity="layer", example_inputs=inputs)  # first: nothing is cached yet
    expected = outputs(model, inputs)
    row.frontend = str(hard.frontend)
    row.sites = len(fitact_fx.bounds(hard))
    row.unprotected = len(fitact_fx.coverage(hard).open)
    fitact_fx.set_bounds(hard, {"*": (-torch.inf, torch.inf)})
    got = outputs(hard, inputs)
    row.from_eager = greatest_difference(expected, got)
    if row.frontend == "export":
        expected = outputs(torch.export.export(model, inputs).module(), inputs)
    row.equal = same_bits(expected, got)
    if not row.equal:
        row.problems.append(f"at infinite bounds the outputs differ by {greatest_difference(expected, got):.2g}")
    compiled = outputs(torch.compile(hard, backend=backend), inputs)
    row.agrees = close(got, compiled)
    if not row.agrees:
        row.problems.append(f"compiled, the outputs differ by {greatest_difference(got, compiled):.2g}")


def outputs(model: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Every tensor that the model returns, however nested; the same random numbers each time."""
    torch.manual_seed(1)
    leaves = pytree.tree_leaves(model(*(each.clone() for each in inputs)))
    tensors = [leaf.clone() for leaf in leaves if torch.is_tensor(leaf)]
    if not tensors:
        raise TypeError("there is no tensor in what the model returned")
    return tensors


def same_bits(expected: list[Tensor], got: list[Tensor]) -> bool:
    """Equal to the last bit, the sign of a zero and the kind of a NaN included."""
    return same_shapes(expected, got) and all(
        torch.equal(_bytes(a), _bytes(b)) for a, b in zip(expected, got, strict=True)
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def close(expected: list[Tensor], got: list[Tensor]) -> bool:
    """Equal but for the rounding of another order of operations."""
    return same_shapes(expected, got) and all(
        torch.allclose(b, a, rtol=RELATIVE, atol=RELATIVE * scale(a), equal_nan=True)
        for a, b in zip(expected, got, strict=True)
    )


def greatest_difference(expected: list[Tensor], got: list[Tensor]) -> float:
    """The greatest difference relative to the greatest value of its output; infinite if shapes differ."""
    if not same_shapes(expected, got):
        return torch.inf
    differences = [
        float((a.double() - b.double()).abs().nan_to_num(torch.inf).max()) / scale(a)
        for a, b in zip(expected, got, strict=True)
        if a.numel() and not same_bits([a], [b])
    ]
    return max(differences, default=0.0)


def scale(tensor: Tensor) -> float:
    """The greatest magnitude among the values; 1 where all are zero."""
    return float(tensor.double().abs().max()) or 1.0 if tensor.numel() else 1.0


def same_shapes(expected: list[Tensor], got: list[Tensor]) -> bool:
    """As many tensors, each of its partner's type and shape."""
    return [(t.dtype, t.shape) for t in expected] == [(t.dtype, t.shape) for t in got]


def in_one_line(error: Exception) -> str:
    """The kind of error and the first line of what it says; of a FitactError the second one as well."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    shown = lines[:2] if isinstance(error, fitact_fx.FitactError) else lines[:1]
    return f"{type(error).__name__}: {' '.join(shown)}"


def all_cases(suites: list[str]) -> list[Case]:
    """The cases of these suites; a suite's own library is imported only for it."""
    cases: list[Case] = []
    if "torchvision" in suites:
        import coverage_torchvision

        cases += coverage_torchvision.cases()
    if "timm" in suites:
        import coverage_timm

        cases += coverage_timm.cases()
    if "huggingface" in suites:
        import coverage_huggingface

        cases += coverage_huggingface.cases()
    return cases


def main(arguments: list[str] | None = None) -> int:
    """Check one model; the last line printed is its row as JSON."""
    parser: Any = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="suite/name")
    parser.add_argument("--backend", default="aot_eager", help="of torch.compile (default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    suite = options.path.partition("/")[0]
    case = next((case for case in all_cases([suite]) if case.path == options.path), None)
    if case is None:
        sys.exit(f"no model is called {options.path}; it is suite/name, as in tools/results/coverage_sweep.md")
    print(json.dumps(asdict(checked(case, options.backend))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
