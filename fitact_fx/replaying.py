"""A fault list once more: which words it hits in a model, and what the model's outputs make of it.

outcome = replay(FaultList.load("list.safetensors"), seeded_model("torchvision:resnet18"), (images,))
"""

import glob
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fitact_fx.ambience import random_states_kept
from fitact_fx.batches import Batch
from fitact_fx.errors import FaultError, FitactError
from fitact_fx.faults import BitFlip, FaultList, Format, Memory
from fitact_fx.faults.tensor_cell import TensorCell
from fitact_fx.faulty_outputs import Outputs, compared, first_line
from fitact_fx.hit_words import HitWords, Witness, Word, digest, raw, watched
from fitact_fx.injected import NodeName
from fitact_fx.injection import inject
from fitact_fx.model_spec import load_model
from fitact_fx.models.weights import load_weights
from fitact_fx.ranges import evaluating

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What `replay` saw. `outputs` is None if there were no inputs to run on.

    `memory_hash` is of every tensor of the model before and after; `unrestored` names those that differ.
    """

    hits: tuple[HitWords, ...]
    outputs: Outputs | None
    tensors: int
    unrestored: tuple[str, ...]
    memory_hash: str

    @property
    def words(self) -> Iterator[Word]:
        """Every word that was hit, tensor by tensor."""
        return (word for one in self.hits for word in one)

    @property
    def words_hash(self) -> str:
        """The same wherever the same words became the same words and numbers."""
        return digest(part for one in self.hits for part in one.parts)

    def as_json(self, limit: int | None = None) -> dict[str, Any]:
        """Everything, for programs; at most `limit` words."""
        rows = [word.as_json() for word in islice(self.words, limit)]
        counts = {"hit": sum(map(len, self.hits)), "changed": sum(one.changed for one in self.hits)}
        return {
            "words": {**counts, "hash": self.words_hash, "rows": rows},
            "outputs": None if self.outputs is None else asdict(self.outputs),
            "memory": {
                "tensors": self.tensors,
                "hash": self.memory_hash,
                "restored": not self.unrestored,
                "unrestored": list(self.unrestored),
            },
        }


def seeded_model(spec: str, seed: int = 0, weights: str | Path | None = None) -> nn.Module:
    """The model of a SPEC in evaluation mode, with the same random weights in every process, or those of a file.

    The global generators are as before. FitactError as `load_model` and `load_weights` raise it.
    """
    with random_states_kept():
        torch.manual_seed(seed % 2**63)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  a factory may still draw from the old global generator
        model = load_model(spec)
    return (model if weights is None else load_weights(model, weights)).eval()


def with_nodes(
    model: nn.Module,
    at: Sequence[str],
    where: str,
    stored: str | Format,
    inputs: Inputs,
    capacity: int = 1,
    *,
    permanent: bool = False,
) -> nn.Module:
    """A copy of `model` with injection nodes, as `inject` makes it, that hold no faults yet.

    FitactError for inputs that the model does not take, and as `inject` raises it.
    """
    _clean(model, inputs)
    return inject(
        model,
        at,
        BitFlip(count=0),
        where,
        format=stored,
        example_inputs=inputs,
        permanent=permanent,
        capacity=capacity,
    )


def replay(faults: FaultList, model: nn.Module, inputs: Inputs = ()) -> Outcome:
    """Apply `faults` to `model`, run it clean and faulty on `inputs` in evaluation mode, undo, and compare.

    The model's memory is faulty in between, and is compared with what it was. Where the list has activations, a copy
    runs that has injection nodes there. FaultError for a list that does not fit, or that has activations and gets no
    inputs; FitactError for inputs that the model does not take.
    """
    model = _with_nodes_of(faults, model, inputs)
    memory = Memory.of(model)
    memory.require(faults.shapes, faults.format)
    clean = _clean(model, inputs) if inputs else None
    before = _tensor_hashes(model)
    seen = {one.name: Witness(faults, one) for one in faults.hits}
    tensors = {name: cell.tensor for name in seen if isinstance(cell := memory.names[name], TensorCell)}
    for name, tensor in tensors.items():
        seen[name].see_before(tensor)
    with faults.applied(memory), watched(model, seen):
        for name, tensor in tensors.items():
            seen[name].see_after(tensor)
        outputs = compared(clean, partial(_run, model, inputs), len(inputs[0])) if inputs else None
    after = _tensor_hashes(model)
    unrestored = tuple(name for name in before if before[name] != after.get(name))
    hits = tuple(each.hit() for each in seen.values() if each.values)
    return Outcome(hits, outputs, len(before), unrestored, digest(after.values()))


def _with_nodes_of(faults: FaultList, model: nn.Module, inputs: Inputs) -> nn.Module:
    """The model itself, or where the list has activations a copy with injection nodes at those places."""
    nodes = {node: one for one in faults.tensors if (node := NodeName.parse(one.name)) is not None}
    if nodes and not inputs:
        node, one = next(iter(nodes.items()))
        samples = "" if node.permanent else f" of {one.shape[0]} samples, as the list was drawn for"
        problem = f"{one.name!r} is an activation, which is there only while the model runs"
        raise FaultError(f"{problem};\n  give inputs (--input){samples}")
    capacity = max(1, *(len(one) for one in nodes.values())) if nodes else 1
    for where, permanent in dict.fromkeys((node.where, node.permanent) for node in nodes):
        at = [glob.escape(node.point) for node in nodes if (node.where, node.permanent) == (where, permanent)]
        model = with_nodes(model, at, where, faults.format, inputs, capacity, permanent=permanent)
    return model


def _run(model: nn.Module, inputs: Inputs) -> Any:
    """One forward in evaluation mode, with the same random numbers each time."""
    with evaluating(model), random_states_kept(), torch.no_grad():
        torch.manual_seed(0)
        return Batch(inputs, {}, None).run(model)


def _clean(model: nn.Module, inputs: Inputs) -> Any:
    try:
        return _run(model, inputs)
    except Exception as error:  # user code may raise anything
        given = " and ".join(f"{tuple(each.shape)} {str(each.dtype).removeprefix('torch.')}" for each in inputs)
        raise FitactError(f"the model does not take {given}:\n  {first_line(error)}") from error


def _tensor_hashes(model: nn.Module) -> dict[str, str]:
    """Name -> hash of the raw bits, of every parameter and buffer, what is loaded in injection nodes included."""
    return {name: digest([raw(each)]) for name, each in (*model.named_parameters(), *model.named_buffers())}
