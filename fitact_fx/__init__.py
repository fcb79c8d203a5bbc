"""fitact_fx: a compiler pass that makes PyTorch models survive hardware faults."""

from fitact_fx.campaigns.planning import plan
from fitact_fx.campaigns.running import run_campaign
from fitact_fx.coverage import Coverage, coverage
from fitact_fx.errors import CostlyWarning, FitactError, UncalibratedWarning, UnprotectedWarning
from fitact_fx.hardening import bounds, calibrate, harden, post_train, set_bounds
from fitact_fx.injection import inject
from fitact_fx.lowered import lower
from fitact_fx.packing import store_bounds
from fitact_fx.saving import load, save
from fitact_fx.scrubbing import Scrubbed, guard, scrub
from fitact_fx.sites import Site, find_sites
from fitact_fx.tracing import trace
from fitact_fx.verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "CostlyWarning",
    "Coverage",
    "FitactError",
    "Scrubbed",
    "Site",
    "UncalibratedWarning",
    "UnprotectedWarning",
    "Verification",
    "bounds",
    "calibrate",
    "coverage",
    "find_sites",
    "guard",
    "harden",
    "inject",
    "load",
    "lower",
    "plan",
    "post_train",
    "run_campaign",
    "save",
    "scrub",
    "set_bounds",
    "store_bounds",
    "trace",
    "verify",
]
