"""The page of tools/measure_injection.py."""

import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision
from injection_cases import FORWARDS, IMAGES, Check
from injection_peers import PEERS, Seu
from tabulate import tabulate

LIMIT = 3.0
DRAW_LIMIT = 20.0  # ms
MEMORY_LIMIT = 1_000_000
OURS, BARE = "ours", "bare XOR"
LOOP = "ours, in a loop"
COLD = ", behind a forward"
_FORMATS = """\
Ours at BER 1e-5, milliseconds per trial. In a format that is not the tensor's own, each hit element is encoded and \
decoded; int8 has a scale, worked out at the first use and again when the tensor was written to."""


def page(found: Any, command: str) -> str:
    """Everything that was found, ratios first."""
    parts = [
        "# What an injection costs",
        f"`{command}`, one thread; {_versions(found.versions)}; 2 shared {platform.machine()} cores, a noisy machine.",
        _conditions(),
        "## Ratios",
        _ratios(found),
        "## Times of a trial",
        "Milliseconds per trial over the test set: median [lower quartile, upper quartile] (number of trials).",
        _times(found),
        "## Formats",
        _FORMATS,
        _table([{"format": name, "ms": _spread(seconds)} for name, seconds in found.formats.items()]),
        *_activations(found),
        "## Drawing",
        _drawing(found.draws),
        "## Memory",
        _memory(found.memory),
        "## What each tool did",
        _checks(found.checks),
        *_driven(found.versions),
        "## On a GPU",
        _gpu(found.gpu),
    ]
    return "\n\n".join(parts) + "\n"


def _versions(peers: Mapping[str, str]) -> str:
    ours = f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    return ", ".join([ours, *(f"{name} {number}" for name, number in peers.items() if number)])


def _conditions() -> str:
    return (
        f"ResNet-18 of torchvision, random weights, 10 classes, float32; {IMAGES:,} images of 32x32 in batches of 128, "
        f"{FORWARDS} forwards. A trial's time is all that a tool adds to the clean forwards: what injects by hooks "
        f"pays {FORWARDS} times, what copies the model or changes it in place pays once. The tools take turns. "
        "*Bare XOR* is the yardstick: plain PyTorch, places and masks ready, `view[places] ^= masks` on an int32 view "
        "of each hit tensor, and the same again to undo. *Ours* is `with faults.applied(model): pass`, "
        "with the list drawn before; both run again and again on the same list, which keeps its words in the cache. "
        "*Fresh list*: each trial applies a list "
        "that was never applied before, its drawing not counted, while the bare XOR keeps its one list. "
        "*Behind a forward*: the same right after a forward of 128 images, as between two trials of a campaign; what "
        "others do behind a forward is compared with ours behind a forward. *In a loop*: like the loop of "
        f"{Seu.name} over every element of the first weight, one after the other, each with a list that was never "
        "applied before; that tool's loop is compared with this."
    )


def _ratios(found: Any) -> str:
    rows = []
    for case, trials in found.trials.items():
        medians = {name: statistics.median(seconds) for name, seconds in trials.items()}
        row = {"fault": case, f"ours / bare XOR (at most {LIMIT:g})": _verdict(medians[OURS], medians[BARE])}
        row["the same, behind a forward"] = f"{medians[OURS + COLD] / medians[BARE + COLD]:.2f}"
        row["ours, fresh list / bare XOR"] = f"{medians[OURS + ', fresh list'] / medians[BARE]:.2f}"
        for name in _peer_rows(found):
            like = OURS + COLD if name.endswith(COLD) else LOOP if name == Seu.name else OURS
            ours = medians.get(like, medians[OURS])
            row[f"{name} / ours (above 1)"] = _over(medians[name], ours) if name in medians else "no"
        rows.append(row)
    return _transposed(rows)


def _transposed(rows: Sequence[Mapping[str, str]]) -> str:
    """One line per ratio, one column per fault."""
    first, *keys = rows[0]
    return _table([{"ratio": key, **{row[first]: row[key] for row in rows}} for key in keys])


def _verdict(ours: float, bare: float) -> str:
    return f"{ours / bare:.2f}{'' if ours <= LIMIT * bare else ' (missed)'}"


def _over(peer: float, ours: float) -> str:
    ratio = peer / ours
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}{'' if ratio > 1 else ' (missed)'}"


def _peer_rows(found: Any) -> list[str]:
    names = {name for trials in found.trials.values() for name in trials}
    names |= {name for refused in found.refused.values() for name in refused}
    order = [extra for peer in PEERS for extra in (peer.name, f"{peer.name}, alone", peer.name + COLD)]
    return [name for name in order if name in names]


def _times(found: Any) -> str:
    own = [name for name in next(iter(found.trials.values())) if name.startswith((OURS, BARE))]
    rows = [{"tool": "faults in the list", **{case: f"{count:,}" for case, count in found.flips.items()}}]
    for name in [*own, *_peer_rows(found)]:
        row = {"tool": name}
        for case, trials in found.trials.items():
            reason = found.refused.get(case, {}).get(name.removesuffix(", alone").removesuffix(COLD), "")
            row[case] = _spread(trials[name]) if name in trials else f"no: {reason}" if reason else ""
        rows.append(row)
    return _table(rows)


def _spread(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return f"{_ms(seconds[0])} (1)"
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return f"{_ms(middle)} [{_ms(low)}, {_ms(high)}] ({len(seconds)})"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def _activations(found: Any) -> list[str]:
    bare = statistics.median(found.activations["bare clone and XOR"])
    rows = [
        {"tool": name, "ms per batch": _spread(seconds), "/ bare": f"{statistics.median(seconds) / bare:.2f}"}
        for name, seconds in found.activations.items()
    ]
    text = (
        "BER 1e-6 over a batch of 128 at the output of every ReLU (17 calls, "
        f"{found.activation_flips} flips for the bare row). Only the injecting functions are timed, inside "
        "real forwards. Bare: a clone of each output and an XOR into it, places and masks ready; MRFI: its float "
        "preset at the output of every `ReLU` module, which writes into the output itself and draws as it goes."
    )
    return ["## Activations", text, _table(rows)]


def _drawing(seconds: Sequence[float]) -> str:
    ms = 1e3 * statistics.median(seconds)
    return (
        f'`BitFlip(rate=1e-5).draw(model, format="q15.16", seed=0, trial=t)` on ResNet-50: {_spread(seconds)} ms, '
        f"{'below' if ms < DRAW_LIMIT else 'NOT below'} {DRAW_LIMIT:g} ms."
    )


def _memory(rows: Sequence[Mapping[str, Any]]) -> str:
    table = [
        {
            "model": row["model"],
            "format": row["format"],
            "flips": f"{row['flips']:,}",
            "Python and NumPy [kB]": f"{row['python'] / 1e3:,.0f}",
            "PyTorch [kB]": f"{row['torch'] / 1e3:,.0f}",
            "the list itself [kB]": f"{row['list'] / 1e3:,.0f}",
            f"below {MEMORY_LIMIT / 1e6:g} MB": "yes" if row["python"] + row["torch"] < MEMORY_LIMIT else "no (missed)",
        }
        for row in rows
    ]
    text = (
        "The most held at once beyond the model and the list while a BER 1e-5 list that was never used before is "
        "applied and undone. Python and NumPy: `tracemalloc`. PyTorch: the allocations and releases that its "
        "profiler records (`profile_memory`), added up in order. The two peaks need not fall together, so their "
        "sum is an upper bound. The model and the format were used once before."
    )
    return f"{text}\n\n{_table(table)}"


def _checks(checks: Mapping[str, Check]) -> str:
    rows = []
    for name, check in checks.items():
        sign, exponent, mantissa = check.fields
        rows.append(
            {
                "tool": name,
                "words changed": f"{check.words:,}",
                "expected": f"{check.expected:,.0f}",
                "tensors hit": f"{check.hit} of {check.tensors}",
                "sign, exponent, mantissa bits": f"{sign:,}, {exponent:,}, {mantissa:,}",
                "bit positions": f"{sum(n > 0 for n in check.per_bit)} of 32",
                "weights as before": check.restored,
            }
        )
    text = (
        "One run at BER 1e-5, read from the words of the model before, during and after. *Expected* is the mean "
        "for the tensors that the tool targets (ours and seu-injection-framework all parameters, the others conv and "
        "linear weights), its standard deviation 60; for PyTorchFI, the number of words it was told to change."
    )
    return f"{text}\n\n{_table(rows)}"


def _driven(versions: Mapping[str, str]) -> list[str]:
    if not versions:
        return []
    lines = []
    for peer in PEERS:
        number = versions.get(peer.name)
        label = f"{peer.name} {number}" if number else f"{peer.name} (not installed: pip install {peer.requirement})"
        lines.append(f"- **{label}**: {peer.how}.")
    return ["## How each peer was driven", "\n".join(lines)]


def _gpu(gpu: Mapping[str, Any]) -> str:
    if not gpu:
        return "No GPU was measured: there was none on this machine."
    here, there = gpu["hashes"]
    verdict = "the same faulty words as on the CPU" if here == there else "OTHER faulty words than on the CPU"
    rows = [{"tool": name, "ms per trial": _spread(seconds)} for name, seconds in gpu["trials"].items()]
    return f"{gpu['device']}, BER 1e-5: {verdict} (hashes {here} and {there}).\n\n{_table(rows)}"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
