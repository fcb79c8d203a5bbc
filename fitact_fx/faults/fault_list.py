"""What one trial does, exactly: a value that can be looked at, saved, and replayed bit for bit."""

import hashlib
import json
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

from fitact_fx.errors import FaultError
from fitact_fx.faults import applying, storing
from fitact_fx.faults.formats import Format, find_format
from fitact_fx.faults.memory import Memory
from fitact_fx.faults.tensor_faults import Rows, TensorFaults


@dataclass(frozen=True, eq=False, repr=False)
class FaultList:
    """The bits that flip in one trial, per targeted tensor, with how they came about.

    A tensor that was targeted and not hit is part of the list: that is what makes it fit a model or not
    whatever was drawn. `rate`, `seed` and `trial` only tell where the faults come from.
    FaultError for a bit outside the format's word and for a tensor named twice.
    """

    format: Format
    tensors: tuple[TensorFaults, ...]
    rate: float | None = None
    seed: int = 0
    trial: int = 0

    def __post_init__(self) -> None:
        names = [one.name for one in self.tensors]
        if len(set(names)) != len(names):
            raise FaultError("a fault list names one tensor twice")
        for one in self.tensors:
            if len(one) and one.bits.max() >= self.format.bits:
                raise FaultError(
                    f"tensor {one.name!r}: bit {one.bits.max()} lies outside {self.format.name}, "
                    f"whose bits are 0 to {self.format.bits - 1}"
                )

    def __len__(self) -> int:
        return sum(map(len, self.tensors))

    def __repr__(self) -> str:
        origin = f"rate {self.rate}, seed {self.seed}, trial {self.trial}"
        return f"<FaultList: {len(self)} faults in {len(self.tensors)} tensors, {self.format.name}, {origin}>"

    def __eq__(self, other: object) -> bool:
        return self.checksum == other.checksum if isinstance(other, FaultList) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.checksum)

    @property
    def rows(self) -> Rows:
        """One (tensor, element, bit) per fault; a sequence."""
        return Rows(self.tensors)

    @cached_property
    def fingerprint(self) -> str:
        """The same for all lists that fit the same models: of the tensors' names and shapes, in any order."""
        return _digest(sorted((one.name, one.shape) for one in self.tensors))

    @cached_property
    def checksum(self) -> str:
        """The same for equal lists only: of everything."""
        return _digest(self._header(), *(part for one in self.tensors for part in (one.elements, one.bits)))

    def applied(self, model: nn.Module | Memory) -> AbstractContextManager[None]:
        """`with faults.applied(model):` the faults are in the model's own tensors, and nowhere after it.

        This changes the user's model, for the length of the block; every other tensor, and every element
        that is not hit, keeps its exact value. On the way out, by an exception too, the hit elements
        get back the very bits they had; so neither train, move nor cast the model inside. Autograd takes
        both for in-place changes. `Memory.of(model)` in the model's place saves looking the tensors up again.

        FaultError, before anything is changed, if a tensor of the list is missing in the model, has
        another shape, or cannot hold the format; or if faults are applied to the model already.
        """
        return applying.applied(Memory.of(model), self.format, self.tensors)

    def restricted_to(self, model: nn.Module | Memory) -> "FaultList":
        """The part on tensors that `model` has too: of a hardened model's list, what fits the plain one.

        FaultError if that is none of them.
        """
        names = Memory.of(model).names
        shared = tuple(one for one in self.tensors if one.name in names)
        if not shared:
            raise FaultError(f"{type(model).__name__} has none of the tensors that the fault list names")
        return replace(self, tensors=shared)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, in one go: `path` holds all of it or what it held before.

        The format: see `fitact_fx.faults.storing`.
        """
        elements = np.concatenate([np.empty(0, np.int64), *(one.elements for one in self.tensors)])
        bits = np.concatenate([np.empty(0, np.uint8), *(one.bits for one in self.tensors)])
        storing.write(path, self._header() | {"checksum": self.checksum}, elements, bits)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "FaultList":
        """The list that was saved at `path`. FaultError if the file is cut, edited, or something else."""
        if not Path(path).is_file():
            raise FaultError(f"there is no file {path};\n  pass the path that FaultList.save wrote")
        header, elements, bits = storing.read(path)
        try:
            loaded = cls._parse(header, elements, bits)
        except (KeyError, TypeError, ValueError, FaultError) as cause:
            raise FaultError(f"{path} is not a whole fault list: {cause}") from cause
        if loaded.checksum != header.get("checksum"):
            raise FaultError(f"{path} was changed after it was saved: its checksum does not fit; save it again")
        return loaded

    @classmethod
    def _parse(cls, header: storing.Header, elements: storing.Elements, bits: storing.Bits) -> "FaultList":
        tensors, start = [], 0
        for entry in header["tensors"]:
            part = slice(start, start + entry["faults"])
            tensors.append(TensorFaults(entry["name"], tuple(entry["shape"]), elements[part], bits[part]))
            start = part.stop
        if start != len(elements):
            raise FaultError(f"its tensors have {start} faults, its arrays {len(elements)}")
        origin = {key: header[key] for key in ("rate", "seed", "trial")}
        return cls(find_format(header["format"]), tuple(tensors), **origin)

    def _header(self) -> storing.Header:
        tensors = [{"name": one.name, "shape": one.shape, "faults": len(one)} for one in self.tensors]
        origin = {"rate": self.rate, "seed": self.seed, "trial": self.trial}
        return {"format": self.format.name, **origin, "tensors": tensors}


def _digest(header: object, *arrays: "np.ndarray[tuple[int], np.dtype[np.generic]]") -> str:
    """128 bits in hexadecimal, the same on every machine."""
    digest = hashlib.blake2b(json.dumps(header).encode(), digest_size=16)
    for array in arrays:
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
