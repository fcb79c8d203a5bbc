"""Other tools' loops beside a campaign of ours: the same network, images and number of faults, one trial at a time.

As in tools/injection_peers.py, whatever a user can prepare before the first trial is prepared outside the timed part:
lists of places and values, wrapped models, a first forward.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from campaign_sides import VARIANT, Inside, Plan, Times, timed
from campaign_suffixes import layers
from injection_cases import Case
from injection_peers import Mrfi, PyTorchFI, installed
from torch import Tensor, nn
from tqdm import tqdm

from fitact_fx.campaigns.evaluating import How
from fitact_fx.campaigns.job import Block
from fitact_fx.campaigns.kinds import Kind, RateSweep, SingleFaults
from fitact_fx.faults import FaultList

Trial = Callable[[int], float | None]
"""Runs the trial of this number; its accuracy."""

FORMAT = "float32"
OURS = {
    "ours, whole network": How(compile=False, suffixes=False, skip=False),
    "ours, eager": How(compile=False),
    "ours, compiled": How(compile=True),
}


@dataclass(frozen=True)
class Question:
    """What is asked: `rate` is None where it is what a single fault does."""

    label: str
    rate: float | None

    @property
    def kind(self) -> Kind:
        """As `run_campaign` takes it."""
        return SingleFaults() if self.rate is None else RateSweep((self.rate,))

    @property
    def measure(self) -> str:
        """What the interval is about."""
        return "sdc1" if self.rate is None else "accuracy"


QUESTIONS = (Question("single fault", None), Question("BER 1e-06", 1e-6), Question("BER 1e-05", 1e-5))


@dataclass(frozen=True)
class Ground:
    """A network and its images, one batch; with random weights, it is right where it answers as without faults."""

    name: str
    model: nn.Module
    inputs: Tensor
    labels: Tensor

    @classmethod
    def of(cls, plan: Plan, name: str, images: int) -> "Ground":
        """By name, the first test images."""
        model, (inputs, labels) = plan.network(name), plan.images(images)
        if name == "ResNet-18":
            with torch.inference_mode():
                labels = model(inputs).argmax(1)
        return cls(name, model, inputs, labels.clone())

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """What all tools can hit: the weights of convolutions and linear layers."""
        return layers(self.model)

    @cached_property
    def golden(self) -> Tensor:
        """The answers without faults, with which a loop compares."""
        with torch.no_grad():
            answers: Tensor = self.model(self.inputs).argmax(1)
        return answers

    def inside(self, question: Question, how: How, trials: int) -> Inside:
        """A campaign of ours, set up."""
        data = (self.inputs, self.labels)
        return Inside.of(self.model, data, question.kind, how, trials=trials, targets=self.targets, format=FORMAT)

    def judged(self, outputs: Tensor) -> float:
        """What the loop of another tool's user works out: the accuracy, and the share of silent corruptions."""
        answers = outputs.argmax(1)
        right = self.golden == self.labels
        (answers != self.golden)[right].float().mean().item()
        finite = outputs.max(1).values.isfinite()
        return ((answers == self.labels) & finite).float().mean().item()


class PyTorchFILoop(PyTorchFI):
    """A faulty deep copy for each trial, from the places and values of our own lists."""

    def trials(self, ground: Ground, question: Question, lists: Sequence[FaultList]) -> Trial:
        """Injection, forward, judgement, reset."""
        injector = self._injector(ground.model)
        places = [self._places(ground.model, faults) for faults in lists]

        def trial(number: int) -> float:
            with torch.no_grad():
                accuracy = ground.judged(injector.declare_weight_fi(**places[number])(ground.inputs))
                injector.fi_reset()
            return accuracy

        return trial


class MrfiLoop(Mrfi):
    """Hooks that draw anew in each forward, which is one trial here; one bit is injected where our list has it."""

    def trials(self, ground: Ground, question: Question, lists: Sequence[FaultList]) -> Trial:
        """A forward under its hooks, and judgement."""
        cases = [Case(question.label, question.rate, faults) for faults in lists]
        wrapped = [self._wrapped(ground.model, case) for case in (cases if question.rate is None else cases[:1])]
        for each in wrapped:
            each(ground.inputs[:2])

        def trial(number: int) -> float:
            with torch.no_grad():
                return ground.judged(wrapped[number % len(wrapped)](ground.inputs))

        return trial


PEERS = (PyTorchFILoop(), MrfiLoop())


def present() -> dict[str, str]:
    """Which of them are installed, with their versions."""
    return {peer.name: number for peer in PEERS if (number := installed(peer))}


@dataclass(frozen=True)
class Sides:
    """All tools ready for the trials of one question."""

    ground: Ground
    question: Question
    trials: Mapping[str, Trial]
    count: int

    @classmethod
    def of(cls, ground: Ground, question: Question, count: int, compiled: bool) -> "Sides":
        """Ours and the peers' that are installed; the lists are drawn for the peers, and by ours in each trial."""
        ways = {name: how for name, how in OURS.items() if compiled or not how.compile}
        insides = {name: ground.inside(question, how, count) for name, how in ways.items()}
        job = next(iter(insides.values())).job
        memory = job.evaluator(VARIANT).memory
        lists = [job.cells[0].faults(memory, job.format, job.seed, trial, None) for trial in range(count)]
        found = {peer.name: peer.trials(ground, question, lists) for peer in PEERS if installed(peer)}
        return cls(ground, question, found | {name: _ours(inside) for name, inside in insides.items()}, count)

    def in_turn(self, only: Sequence[str] | None = None) -> tuple[dict[str, Times], dict[str, list[float | None]]]:
        """Every trial of every side: the seconds, and the accuracies."""
        names = list(self.trials) if only is None else list(only)
        times, found = {name: Times() for name in names}, {name: list[float | None]() for name in names}
        for name in names:
            self.trials[name](0)  # not counted: what only the first call does
        for number in tqdm(range(self.count), desc=f"{self.ground.name}, {self.question.label}", unit="turn"):
            for name in names:
                accuracy, spent = timed(self.trials[name], number)
                times[name].add(spent)
                found[name].append(accuracy)
        return times, found


def _ours(inside: Inside) -> Trial:
    def trial(number: int) -> float | None:
        (row,) = inside.job.run(Block(0, VARIANT, (number,)))
        return row.accuracy

    return trial


def told(sides: Sides) -> dict[str, Any]:
    """Equal work: seconds per trial by tool, and in how many trials PyTorchFI found the accuracy that ours found."""
    times, found = sides.in_turn()
    exact, theirs = found["ours, whole network"], found.get(PyTorchFI.name, [])
    agree = sum(abs((one or 0.0) - (other or 0.0)) < 1e-6 for one, other in zip(exact, theirs, strict=False))
    return {
        "question": sides.question.label,
        "trials": sides.count,
        "seconds": {name: each.told() for name, each in times.items()},
        "agree": agree if theirs else None,
    }
