"""What an injection costs: ours, a bare XOR in place, and the tools that install from the package index.

    pip install -e .[bench]
    python tools/measure_injection.py --json tools/results/injection.json --out tools/results/injection.md

One thread, everything in one run, the tools taking turns. ResNet-18 with random weights, images of 32x32, a test
set of 10,000 images: 79 forwards of up to 128. The time of a trial is all that a tool adds to the clean forwards.
`--without-peers` leaves the other tools out, `--rounds 1` is a quick look.
"""

import argparse
import copy
import gc
import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torchvision
from injection_activations import RATE, bare_on_relus, ours_on_relus
from injection_cases import BATCH, INPUT, Case, Check, Trial, case_of, changes, expected_words, masks_of, same, words_of
from injection_memory import apply, measure_memory
from injection_page import page
from injection_peers import PEERS, Mrfi, Peer, Seu, installed, mrfi_on_relus
from torch import Tensor, nn
from tqdm import tqdm

from fitact_fx.faults import BitFlip, FaultList, TensorFaults, find_format

RATES = (1e-6, 1e-5)
REPEATS = 40  # of what takes about a millisecond, in each round
DRAWS = 10


@dataclass
class Found:
    """Everything measured, in seconds and bytes; names of tools and cases are the keys."""

    versions: dict[str, str]
    flips: dict[str, int] = field(default_factory=dict)
    trials: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    activations: dict[str, list[float]] = field(default_factory=dict)
    activation_flips: int = 0
    formats: dict[str, list[float]] = field(default_factory=dict)
    draws: list[float] = field(default_factory=list)
    memory: list[dict[str, object]] = field(default_factory=list)
    checks: dict[str, Check] = field(default_factory=dict)
    gpu: dict[str, object] = field(default_factory=dict)


def main() -> None:
    """Measure, then print the page or write it."""
    options = _options()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).eval()
    batch = torch.randn(BATCH, *INPUT)
    peers = [] if options.without_peers else [peer for peer in PEERS if installed(peer)]
    found = Found({peer.name: installed(peer) or "" for peer in PEERS if not options.without_peers})
    for case in (cases := [case_of(model, rate) for rate in (None, *RATES)]):
        found.flips[case.label] = len(case.faults)
        trials = _ours(model, case, batch)
        for peer in peers:
            made = peer.trial(model, case, batch)
            if isinstance(made, str):
                found.refused.setdefault(case.label, {})[peer.name] = made
                continue
            trials[peer.name] = (made, peer.repeats)
            if isinstance(peer, Seu):
                trials[f"{peer.name}, alone"] = (peer.alone(model, case, batch), peer.repeats)
                trials[f"{peer.name}, behind a forward"] = (peer.behind_forward(model, batch), 1)
        found.trials[case.label] = _in_turn(trials, options.rounds, case.label)
    found.activations, found.activation_flips = _activations(model, batch, peers, options.rounds)
    found.formats = _formats(model, options.rounds)
    found.draws = _draws(options.rounds)
    found.memory = measure_memory(model)
    found.checks["ours"] = _check_ours(model, cases[-1])
    found.checks |= {peer.name: peer.check(model, cases[-1], batch) for peer in peers}
    found.gpu = _gpu(model, cases[-1].faults, options.rounds)
    _write(options, found)


def _ours(model: nn.Module, case: Case, batch: Tensor) -> dict[str, tuple[Trial, int]]:
    """The bare XOR and our own trials, with how often each is repeated in a round."""
    bare = _bare(model, case.faults)
    numbers = iter(range(1, 1_000_000))

    def applied(faults: FaultList) -> float:
        started = perf_counter()
        with faults.applied(model):
            pass
        return perf_counter() - started

    def drawn() -> float:
        started = perf_counter()
        faults = case_of(model, case.rate, next(numbers)).faults
        between = perf_counter() - started
        return between + applied(faults)

    def behind_forward(trial: Trial) -> Trial:
        def both() -> float:
            with torch.no_grad():
                model(batch)
            return trial()

        return both

    one_by_one = {} if case.rate is not None else {"ours, in a loop": (_loop(model), 4)}
    return one_by_one | {
        "bare XOR": (bare, REPEATS),
        "ours": (lambda: applied(case.faults), REPEATS),
        "ours, fresh list": (lambda: applied(case_of(model, case.rate, next(numbers)).faults), REPEATS),
        "ours, drawn and applied": (drawn, REPEATS // 2),
        "bare XOR, behind a forward": (behind_forward(bare), REPEATS // 8),
        "ours, behind a forward": (behind_forward(lambda: applied(case.faults)), REPEATS // 8),
    }


def _loop(model: nn.Module) -> Trial:
    """One bit of every element of the first weight in turn, as seu-injection-framework's loop does; the mean of all."""
    name, weight = next(iter(model.named_parameters()))
    shape, stored = tuple(weight.shape), find_format("float32")

    def one(element: int) -> FaultList:
        return FaultList(stored, (TensorFaults(name, shape, np.array([element]), np.array([30], np.uint32)),))

    def trial() -> float:
        lists = [one(element) for element in range(weight.numel())]
        started = perf_counter()
        for faults in lists:
            with faults.applied(model):
                pass
        return (perf_counter() - started) / len(lists)

    return trial


def _bare(model: nn.Module, faults: FaultList) -> Trial:
    """The yardstick: places and masks ready, XOR in place on an int32 view, and the same again to undo."""
    device = next(model.parameters()).device
    hits = [
        (model.get_parameter(name).detach().view(-1).view(torch.int32), places.to(device), masks.to(device))
        for name, (places, masks) in masks_of(faults).items()
    ]

    def trial() -> float:
        started = perf_counter()
        for view, places, masks in hits:
            view[places] ^= masks
        for view, places, masks in hits:
            view[places] ^= masks
        return perf_counter() - started

    return trial


def _in_turn(trials: Mapping[str, tuple[Trial, int]], rounds: int, label: str) -> dict[str, list[float]]:
    """The seconds of every trial of every tool, the tools taking turns within each round."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for trial, repeats in trials.values():
        if repeats > 1:
            trial()  # not counted: what only the first call does
    for _ in tqdm(range(rounds), desc=label, unit="round"):
        for turn in range(max(repeats for _, repeats in trials.values())):
            for name, (trial, repeats) in trials.items():
                if turn < repeats:
                    seconds[name].append(trial())
        gc.collect()
    return dict(seconds)


def _activations(
    model: nn.Module, batch: Tensor, peers: Sequence[Peer], rounds: int
) -> tuple[dict[str, list[float]], int]:
    """Faults at every ReLU, a new set in every forward: what one forward of a batch costs more."""
    bare, flips = bare_on_relus(model, batch)
    trials = {"bare clone and XOR": (bare, 4)}
    if any(isinstance(peer, Mrfi) for peer in peers):
        trials[Mrfi.name] = (mrfi_on_relus(model, RATE, batch), 4)
    trials["ours"] = (ours_on_relus(model, batch), 4)
    return _in_turn(trials, rounds, "activations"), flips


def _formats(model: nn.Module, rounds: int) -> dict[str, list[float]]:
    """The BER 1e-5 list of each format that float32 weights can be thought of as stored in."""
    trials: dict[str, tuple[Trial, int]] = {}
    for name in ("float32", "q15.16", "float16", "bfloat16", "float8_e4m3", "int8", "int8_per_channel"):
        faults = BitFlip(rate=1e-5).draw(model, format=name)

        def trial(faults: FaultList = faults) -> float:
            started = perf_counter()
            apply(faults, model)
            return perf_counter() - started

        trials[f"{name} ({len(faults):,} flips)"] = (trial, REPEATS)
    return _in_turn(trials, rounds, "formats")


def _draws(rounds: int) -> list[float]:
    """BER 1e-5 over ResNet-50 in Q15.16, another trial each time."""
    model, seconds = torchvision.models.resnet50().eval(), []
    for trial in tqdm(range(-1, DRAWS * rounds), desc="drawing", unit="draw"):
        started = perf_counter()
        BitFlip(rate=1e-5).draw(model, format="q15.16", seed=0, trial=trial + 1)
        seconds.append(perf_counter() - started)
    return seconds[1:]


def _check_ours(model: nn.Module, case: Case) -> Check:
    before = words_of(model)
    with case.faults.applied(model):
        words, hit, bits = changes(before, words_of(model))
    restored = "yes" if same(before, words_of(model)) else "no"
    return Check(words, expected_words(before, case.rate or 0.0), hit, len(before), bits, restored)


def _gpu(model: nn.Module, faults: FaultList, rounds: int) -> dict[str, object]:
    """The same list on the CPU and on a GPU: the same faulty words? And the times there."""
    if not torch.cuda.is_available():
        return {}
    there = copy.deepcopy(model).cuda()

    def waited(work: Callable[[], object]) -> Trial:
        def trial() -> float:
            torch.cuda.synchronize()
            started = perf_counter()
            work()
            torch.cuda.synchronize()
            return perf_counter() - started

        return trial

    trials = {
        "bare XOR": (waited(_bare(there, faults)), REPEATS),
        "ours": (waited(lambda: apply(faults, there)), REPEATS),
    }
    hashes = [_hash_of_faulty(model, faults), _hash_of_faulty(there, faults)]
    return {
        "device": torch.cuda.get_device_name(),
        "hashes": hashes,
        "trials": _in_turn(trials, rounds, "on the GPU"),
    }


def _hash_of_faulty(model: nn.Module, faults: FaultList) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with faults.applied(model):
        for words in words_of(model).values():
            digest.update(words.cpu().numpy().tobytes())
    return digest.hexdigest()


def _write(options: argparse.Namespace, found: Found) -> None:
    command = "python tools/measure_injection.py" + (" --without-peers" if options.without_peers else "")
    command += f" --rounds {options.rounds}" if options.rounds != 5 else ""
    text = page(found, command)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")
        print(text.split("\n## ", 2)[1])
    if options.json is not None:
        medians = {case: {name: statistics.median(s) for name, s in of.items()} for case, of in found.trials.items()}
        options.json.write_text(json.dumps({"command": command, "medians": medians, **asdict(found)}) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="every single time goes there")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="where the page goes (else: the screen)")
    parser.add_argument("--without-peers", action="store_true", help="only ours and the bare XOR")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything takes its turn (default 5)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
