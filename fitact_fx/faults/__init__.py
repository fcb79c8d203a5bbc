"""Faults in a model's memory and activations: drawn, looked at, saved, applied and undone, exactly.

faults = BitFlip(rate=1e-6).draw(model, format="q15.16", seed=0, trial=3)
with faults.applied(model):
    evaluate(model)
"""

from fitact_fx.faults.effects import Effect, find_effect
from fitact_fx.faults.fault_list import FaultList
from fitact_fx.faults.fault_model import FaultModel
from fitact_fx.faults.fault_models import find_fault_model
from fitact_fx.faults.fault_models.bit_flip import BitFlip
from fitact_fx.faults.fault_models.burst import Burst
from fitact_fx.faults.fault_models.random_word import RandomWord
from fitact_fx.faults.fault_models.stuck_at import StuckAt
from fitact_fx.faults.fault_models.zero import Zero
from fitact_fx.faults.formats import Format, find_format
from fitact_fx.faults.memory import Memory
from fitact_fx.faults.targets import Target
from fitact_fx.faults.tensor_faults import Fault, TensorFaults, WordFault

__all__ = [
    "BitFlip",
    "Burst",
    "Effect",
    "Fault",
    "FaultList",
    "FaultModel",
    "Format",
    "Memory",
    "RandomWord",
    "StuckAt",
    "Target",
    "TensorFaults",
    "WordFault",
    "Zero",
    "find_effect",
    "find_fault_model",
    "find_format",
]
