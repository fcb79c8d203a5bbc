"""How much memory applying faults takes beyond the model, for tools/measure_injection.py."""

import json
import os
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torchvision
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fitact_fx.faults import BitFlip, FaultList


def measure_memory(model: nn.Module) -> list[dict[str, object]]:
    """The peak beyond the model while a list that was never used before is applied, for each model and format."""
    rows = []
    for name, each in (("ResNet-18", model), ("ResNet-50", torchvision.models.resnet50().eval())):
        for stored in ("float32", "q15.16"):
            lists = [BitFlip(rate=1e-5).draw(each, format=stored, seed=0, trial=trial) for trial in range(3)]
            own = sum(getattr(getattr(one, part.name), "nbytes", 0) for one in lists[0].tensors for part in fields(one))
            work = iter([lambda faults=faults, each=each: apply(faults, each) for faults in lists])
            next(work)()  # not counted: what the first use of a format or an operator keeps for good
            python, torch_ = peak_bytes(next(work), next(work))
            row = {"model": name, "format": stored, "flips": len(lists[0]), "python": python, "torch": torch_}
            rows.append(row | {"list": own})
    return rows


def apply(faults: FaultList, model: nn.Module) -> None:
    """Into the model and out again."""
    with faults.applied(model):
        pass


def peak_bytes(first: Callable[[], None], second: Callable[[], None]) -> tuple[int, int]:
    """The most that Python and NumPy, and that PyTorch, held at once; two works of the same kind, one for each."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        first()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports on its own start and end
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        second()
    return peak - before, _peak_of(recorded)


def _peak_of(recorded: profile) -> int:
    """The allocations and releases that PyTorch's allocator reported, added up in order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    held = most = 0
    for event in sorted((each for each in events if each.get("name") == "[memory]"), key=lambda each: each["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most
