"""Faults in a model's memory: drawn, looked at, saved, applied and undone, exactly.

faults = BitFlip(rate=1e-6).draw(model, format="q15.16", seed=0, trial=3)
with faults.applied(model):
    evaluate(model)
"""

from fitact_fx.faults.bit_flip import BitFlip
from fitact_fx.faults.fault_list import FaultList
from fitact_fx.faults.formats import Format, find_format
from fitact_fx.faults.memory import Memory
from fitact_fx.faults.tensor_faults import Fault, TensorFaults

__all__ = ["BitFlip", "Fault", "FaultList", "Format", "Memory", "TensorFaults", "find_format"]
