"""Other tools beside ours in tools/measure_injection.py: how each is driven, and what it really does to a model.

Each is driven the way its own documentation, examples or tests do it. Whatever a user can prepare before
the first trial (objects, lists of places and values, a first forward) is prepared outside the timed part.
"""

import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from injection_cases import (
    BATCH,
    FORWARDS,
    INJECTED,
    INPUT,
    WORD,
    Case,
    Check,
    Trial,
    changes,
    expected_words,
    masks_of,
    same,
    words_of,
)
from torch import Tensor, nn

from fitact_fx.faults import FaultList


class Peer(Protocol):
    """One tool beside ours."""

    name: ClassVar[str]
    requirement: ClassVar[str]
    repeats: ClassVar[int]
    how: ClassVar[str]

    def trial(self, model: nn.Module, case: Case, batch: Tensor) -> Trial | str:
        """The timed part on a copy of `model`, or why the tool cannot do the case."""

    def check(self, model: nn.Module, case: Case, batch: Tensor) -> Check:
        """What one run of the case does to a copy of `model`."""


def installed(peer: Peer) -> str | None:
    """The version that is installed, if one is."""
    try:
        return version(peer.requirement.split("==")[0])
    except PackageNotFoundError:
        return None


class PyTorchFI:
    """A faulty deep copy of the model for each trial, from explicit lists of places and values."""

    name = "PyTorchFI"
    requirement = "pytorchfi==0.6.0"
    repeats = 6
    how = (
        "`fault_injection(model, 128, input_shape=[3, 32, 32], layer_types=[Conv2d, Linear])` once; timed: "
        "`declare_weight_fi(layer_num=, k=, dim1=, dim2=, dim3=, value=)` and `fi_reset()`. It has no bit flips and "
        "no rates for weights, so it is given the places and the faulty values of our own list (its part on conv "
        "and linear weights), worked out before. The copy is evaluated without hooks, so the test set adds nothing"
    )

    def trial(self, model: nn.Module, case: Case, batch: Tensor) -> Trial:
        injector, places = self._injector(model), self._places(model, case.faults)

        def trial() -> float:
            started = perf_counter()
            injector.declare_weight_fi(**places)
            injector.fi_reset()
            return perf_counter() - started

        return trial

    def check(self, model: nn.Module, case: Case, batch: Tensor) -> Check:
        before, targets = words_of(model), words_of(model, INJECTED)
        faulty = self._injector(model).declare_weight_fi(**(places := self._places(model, case.faults)))
        restored = "never touched: the faults are in a copy" if same(before, words_of(model)) else "no"
        words, hit, bits = changes(targets, words_of(faulty))
        return Check(words, len(places["value"]), hit, len(targets), bits, restored)

    @staticmethod
    def _injector(model: nn.Module) -> Any:
        core = import_module("pytorchfi.core")
        return core.fault_injection(model, BATCH, input_shape=list(INPUT), layer_types=list(INJECTED), use_cuda=False)

    @staticmethod
    def _places(model: nn.Module, faults: FaultList) -> dict[str, list[Any]]:
        weights = [(f"{path}.weight", module) for path, module in model.named_modules() if isinstance(module, INJECTED)]
        hits = masks_of(faults)
        places: dict[str, list[Any]] = {key: [] for key in ("layer_num", "k", "dim1", "dim2", "dim3", "value")}
        for number, (name, module) in enumerate(weights):
            if name not in hits:
                continue
            elements, masks = hits[name]
            values = (module.weight.detach().flatten().view(torch.int32)[elements] ^ masks).view(torch.float32)
            index = [axis.tolist() for axis in np.unravel_index(elements.numpy(), module.weight.shape)]
            index += [[None] * len(elements)] * (4 - len(index))
            columns = [[number] * len(elements), *index, values.tolist()]
            for key, column in zip(places, columns, strict=True):
                places[key] += column
        return places


class Mrfi:
    """Hooks on every module that draw and inject anew at every forward."""

    name = "MRFI"
    requirement = "MRFI==2.1.0"
    repeats = 1
    how = (
        "`MRFI(model, EasyConfig.load_preset('float_weight_fi'))` with the selector's rate at 32 times the bit error "
        "rate, as its `BER_Acc_experiment` sets it; for one bit, `FixPosition` and `FloatFixedBitFlip` on the one "
        f"module. Timed: the functions its hooks call, summed over the {FORWARDS} forwards of the test set, each a "
        "real forward of 128 images (the first forward, which copies the weights, comes before). What PyTorch itself "
        "needs to call the hooks is not counted. It draws other faults for every batch: one trial is "
        f"{FORWARDS} different sets of faults"
    )

    def trial(self, model: nn.Module, case: Case, batch: Tensor) -> Trial:
        wrapped = self._wrapped(model, case)
        wrapped(batch)

        def trial() -> float:
            with timed_hooks() as spent:
                for _ in range(FORWARDS):
                    wrapped(batch)
            return sum(spent)

        return trial

    def check(self, model: nn.Module, case: Case, batch: Tensor) -> Check:
        model = copy.deepcopy(model)
        before, targets = words_of(model), words_of(model, INJECTED)
        wrapped = self._wrapped(model, case, copied=False)
        wrapped(batch[:2])
        first = words_of(model, INJECTED)
        words, hit, bits = changes(targets, first)
        wrapped(batch[:2])
        held = "the same" if same(first, words_of(model, INJECTED)) else "other"
        with wrapped.golden_run():
            wrapped(batch[:2])
        after = "yes" if same(before, words_of(model)) else "no"
        restored = (
            f"not after a run ({held} faults in the next forward); after a further forward in golden_run: {after}"
        )
        return Check(words, expected_words(targets, case.rate or 0.0), hit, len(targets), bits, restored)

    @staticmethod
    def _wrapped(model: nn.Module, case: Case, *, copied: bool = True) -> Any:
        mrfi = import_module("mrfi")
        config = mrfi.EasyConfig.load_preset("float_weight_fi")
        if case.rate is None:
            name, element, bit = case.faults.rows[0]
            config.set_module_used(0, module_fullname=name.removesuffix(".weight"))
            config.set_selector(0, {"method": "FixPosition", "position": element})
            config.set_error_mode(0, {"method": "FloatFixedBitFlip", "bit": bit, "floattype": "float32"})
        else:
            config.set_selector(0, {"rate": WORD * case.rate}, update_only=True)
        return mrfi.MRFI(copy.deepcopy(model) if copied else model, config)


def mrfi_on_relus(model: nn.Module, rate: float, batch: Tensor) -> Trial:
    """MRFI's float preset at the output of every ReLU module: the seconds its hooks take in one forward."""
    mrfi = import_module("mrfi")
    config = mrfi.EasyConfig.load_preset("float_fi")
    config.faultinject[0]["type"] = "activation_out"
    config.set_module_used(0, module_type="ReLU")
    config.set_selector(0, {"rate": WORD * rate}, update_only=True)
    wrapped = mrfi.MRFI(copy.deepcopy(model), config)

    def trial() -> float:
        with timed_hooks() as spent:
            wrapped(batch)
        return sum(spent)

    return trial


@contextlib.contextmanager
def timed_hooks() -> Iterator[list[float]]:
    """Inside, the seconds of every call that MRFI's hooks make."""
    module = import_module("mrfi.mrfi")
    spent: list[float] = []

    def timed(function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            started = perf_counter()
            function(*args)
            spent.append(perf_counter() - started)

        return call

    originals = {name: getattr(module, name) for name in ("_pre_hook_func", "_after_hook_func")}
    try:
        for name, function in originals.items():
            setattr(module, name, timed(function))
        yield spent
    finally:
        for name, function in originals.items():
            setattr(module, name, function)


class Seu:
    """One bit at a time: injected, evaluated and put back inside the tool's own loop."""

    name = "seu-injection-framework"
    requirement = "seu-injection-framework==1.3.0"
    repeats = 4
    layer = "conv1.weight"
    how = (
        "`ExhaustiveSEUInjector(model, criterion, x=images).run_injector(bit_i=1, layer_name='conv1.weight')` with a "
        "criterion that evaluates nothing, divided by its 9,408 injections: the cheapest it can be, because a trial "
        "on its own (`StochasticSEUInjector`, one injection into `layer4.1.conv2.weight`) copies the tensor and "
        "draws a number for each of its elements first. Behind a forward: the mean time between two evaluations of a "
        "batch, over its ten faults in `fc.bias`. It evaluates one fault at a time, in the bit position that the user "
        "names, and by default puts at least one fault into every tensor, however small"
    )

    def trial(self, model: nn.Module, case: Case, batch: Tensor) -> Trial | str:
        if case.rate is not None:
            return "one fault per evaluation"
        injector = self._injector("ExhaustiveSEUInjector", copy.deepcopy(model), batch)

        def trial() -> float:
            started = perf_counter()
            results = _quiet(injector.run_injector, bit_i=1, layer_name=self.layer)
            return (perf_counter() - started) / len(results["criterion_score"])

        return trial

    def alone(self, model: nn.Module, case: Case, batch: Tensor) -> Trial:
        """One injection into the tensor of the case, everything it needs included."""
        injector = self._injector("StochasticSEUInjector", copy.deepcopy(model), batch)
        name, _, _ = case.faults.rows[0]

        def trial() -> float:
            started = perf_counter()
            _quiet(injector.run_injector, bit_i=1, layer_name=name, p=0.0)
            return perf_counter() - started

        return trial

    def behind_forward(self, model: nn.Module, batch: Tensor) -> Trial:
        """The mean time between two evaluations in its loop: what puts one fault back and the next one in."""
        entered, left = [], []

        def evaluate(faulty: nn.Module, *_: object, **__: object) -> float:
            entered.append(perf_counter())
            with torch.no_grad():
                faulty(batch)
            left.append(perf_counter())
            return 0.0

        injector = self._injector("ExhaustiveSEUInjector", copy.deepcopy(model), batch, evaluate)

        def trial() -> float:
            del entered[:], left[:]
            _quiet(injector.run_injector, bit_i=1, layer_name="fc.bias")
            between = [start - end for end, start in zip(left, entered[1:], strict=False)]
            return sum(between) / len(between)

        return trial

    def check(self, model: nn.Module, case: Case, batch: Tensor) -> Check:
        model = copy.deepcopy(model)
        before = words_of(model)
        injector = self._injector("StochasticSEUInjector", model, batch)
        found = _quiet(injector.run_injector, bit_i=1, p=WORD * (case.rate or 0.0))
        old, new = (np.array(found[f"value_{when}"], np.float32).view(np.int32) for when in ("before", "after"))
        _, _, bits = changes({"": torch.from_numpy(old)}, {"": torch.from_numpy(new)})
        restored = "yes" if same(before, words_of(model)) else "no"
        expected = WORD * (case.rate or 0.0) * sum(each.numel() for each in before.values())
        return Check(len(old), expected, len(set(found["layer_name"])), len(before), bits, f"{restored}; one at a time")

    @staticmethod
    def _injector(
        kind: str, model: nn.Module, batch: Tensor, evaluate: Callable[..., float] = lambda *_, **__: 0.0
    ) -> Any:
        core = _quiet(import_module, "seu_injection.core")
        return _quiet(getattr(core, kind), model, evaluate, device="cpu", x=batch[:1], seed=0)


def _quiet(work: Callable[..., Any], *args: object, **options: object) -> Any:
    """Without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return work(*args, **options)


PEERS: tuple[Peer, ...] = (Mrfi(), PyTorchFI(), Seu())
