"""What one trial does, exactly: a value that can be looked at, saved, and replayed bit for bit."""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import nn

from fitact_fx.errors import FaultError
from fitact_fx.faults import applying, storing
from fitact_fx.faults.effects import FLIP, Effect, find_effect
from fitact_fx.faults.fault_table import table
from fitact_fx.faults.formats import Format, find_format
from fitact_fx.faults.memory import Memory
from fitact_fx.faults.tensor_faults import Rows, TensorFaults
from fitact_fx.injected import NodeName


@dataclass(frozen=True, eq=False, repr=False)
class FaultList:
    """The faults of one trial, per targeted tensor, with how they came about.

    A tensor that was targeted and not hit is part of the list: that is what makes it fit a model or not
    whatever was drawn. `fault` (the fault model in words), `seed` and `trial` only tell where the faults
    come from. FaultError for a bit or word outside the format and for a tensor named twice.
    """

    format: Format
    tensors: tuple[TensorFaults, ...]
    effect: Effect = FLIP
    fault: str = "given by hand"
    seed: int = 0
    trial: int = 0

    def __post_init__(self) -> None:
        if len(self.shapes) != len(self.tensors):
            raise FaultError("a fault list names one tensor twice")
        for one in self.hits:
            if self.effect.of_word and (np.diff(one.elements) == 0).any():
                raise FaultError(f"tensor {one.name!r}: an element gets two words")
            stored = self.format_of(one)
            what, end = ("word", 2**stored.bits) if self.effect.of_word else ("bit", stored.bits)
            if one.values.max() >= end:
                outside = f"{what} {one.values.max()} lies outside {stored.name}"
                raise FaultError(f"tensor {one.name!r}: {outside}, whose {what}s are 0 to {end - 1}")

    def format_of(self, one: TensorFaults) -> Format:
        """The format of that tensor's words: the list's, or of packed bounds their own."""
        return one.own or self.format

    def __len__(self) -> int:
        return sum(map(len, self.tensors))

    def __repr__(self) -> str:
        origin = f"{self.fault}, seed {self.seed}, trial {self.trial}"
        return f"<FaultList: {len(self)} faults in {len(self.tensors)} tensors, {self.format.name}, {origin}>"

    def __eq__(self, other: object) -> bool:
        return self.checksum == other.checksum if isinstance(other, FaultList) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.checksum)

    @property
    def rows(self) -> Rows:
        """One (tensor, element, bit) per fault, or (tensor, element, word); a sequence."""
        return Rows(self.tensors, self.effect)

    @cached_property
    def hits(self) -> tuple[TensorFaults, ...]:
        """The tensors that have at least one fault."""
        return tuple(one for one in self.tensors if len(one))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape, of every targeted tensor."""
        return {one.name: one.shape for one in self.tensors}

    @cached_property
    def fingerprint(self) -> str:
        """The same for all lists that fit the same models: of the tensors' names and shapes, in any order."""
        return _digest(sorted(self.shapes.items()))

    @cached_property
    def checksum(self) -> str:
        """The same for equal lists only: of everything."""
        return _digest(self._header(), *(part for one in self.tensors for part in (one.elements, one.values)))

    def applied(self, model: nn.Module | Memory) -> applying.Applied:
        """`with faults.applied(model):` the faults are in the model's own memory, and nowhere after it.

        This changes the user's model, for the length of the block; every other tensor, and every element
        that is not hit, keeps its exact value. On the way out, by an exception too, the hit elements
        get back the very bits they had; so neither train, move nor cast the model inside. Autograd takes
        both for in-place changes. Faults in activations are loaded into the nodes that `inject` put there, and
        the faults that were loaded before come back behind the block. A model wrapped by `torch.compile` is
        its original. Whether all of the list fits is looked up once per model, and each time for what is hit;
        `Memory.of(model)` in the model's place saves even that, and the scales of int8.

        FaultError on the way in, before anything is changed, if a tensor of the list is missing in the model, has
        another shape, or cannot hold the format; or if faults are applied to the model already.
        """
        return applying.Applied(model, self.shapes, self.format, self.effect, self.hits)

    def restricted_to(self, model: nn.Module | Memory) -> "FaultList":
        """The part on tensors that `model` has too: of a hardened model's list, what fits the plain one.

        FaultError if that is none of them.
        """
        names = Memory.of(model).names
        shared = tuple(one for one in self.tensors if one.name in names)
        if not shared:
            raise FaultError(f"{type(model).__name__} has none of the tensors that the fault list names")
        return replace(self, tensors=shared)

    def inferences(self, start: int, stop: int) -> "FaultList":
        """The part of faults in activations that hits samples `start` to `stop`, which become samples 0 and on.

        For a list drawn with `inferences=`, one batch after the other. FaultError if it reaches outside the list, or
        if the list has other tensors: memory is not hit per inference.
        """
        tensors = []
        for one in self.tensors:
            if NodeName.parse(one.name) is None:
                raise FaultError(f"tensor {one.name!r} is no activation: its faults stay for every inference")
            if not 0 <= start < stop <= one.shape[0]:
                raise FaultError(f"inferences {start} to {stop} lie outside the {one.shape[0]} of {one.name!r}")
            each = int(np.prod(one.shape[1:], dtype=np.int64))
            first, last = np.searchsorted(one.elements, (start * each, stop * each))
            elements, values = one.elements[first:last] - start * each, one.values[first:last]
            tensors.append(TensorFaults(one.name, (stop - start, *one.shape[1:]), elements, values))
        return replace(self, tensors=tuple(tensors))

    def table(self, limit: int = 20) -> str:
        """The first `limit` faults as text: tensor, element, its index, and the bit with its field or the word."""
        return table(self, limit)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, in one go: `path` holds all of it or what it held before.

        The format: see `fitact_fx.faults.storing`. FaultError if there is no folder to write to.
        """
        elements = np.concatenate([np.empty(0, np.int64), *(one.elements for one in self.tensors)])
        values = np.concatenate([np.empty(0, np.uint32), *(one.values for one in self.tensors)])
        marks = {"fingerprint": self.fingerprint, "checksum": self.checksum}
        storing.write(path, self._header() | marks, elements, values)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "FaultList":
        """The list that was saved at `path`. FaultError if the file is cut, edited, or something else."""
        header, elements, values = storing.read(path)
        try:
            loaded = cls._parse(header, elements, values)
        except (KeyError, TypeError, ValueError, FaultError) as cause:
            raise FaultError(f"{path} is not a whole fault list: {cause}") from cause
        if (loaded.checksum, loaded.fingerprint) != (header.get("checksum"), header.get("fingerprint")):
            raise FaultError(f"{path} was changed after it was saved: its checksum does not fit; save it again")
        return loaded

    @classmethod
    def _parse(cls, header: storing.Header, elements: storing.Elements, values: storing.Values) -> "FaultList":
        tensors, start = [], 0
        for entry in header["tensors"]:
            part = slice(start, start + entry["faults"])
            own = find_format(entry["format"]) if "format" in entry else None
            tensors.append(TensorFaults(entry["name"], tuple(entry["shape"]), elements[part], values[part], own))
            start = part.stop
        if start != len(elements):
            raise FaultError(f"its tensors have {start} faults, its arrays {len(elements)}")
        origin = {key: header[key] for key in ("fault", "seed", "trial")}
        return cls(find_format(header["format"]), tuple(tensors), find_effect(header["effect"]), **origin)

    def _header(self) -> storing.Header:
        tensors = [
            {"name": one.name, "shape": one.shape, "faults": len(one)}
            | ({} if one.own is None else {"format": one.own.name})
            for one in self.tensors
        ]
        origin = {"fault": self.fault, "seed": self.seed, "trial": self.trial}
        return {"format": self.format.name, "effect": self.effect.name, **origin, "tensors": tensors}


def _digest(header: object, *arrays: "np.ndarray[tuple[int], np.dtype[np.generic]]") -> str:
    """128 bits in hexadecimal, the same on every machine."""
    digest = hashlib.blake2b(json.dumps(header).encode(), digest_size=16)
    for array in arrays:
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
