"""Many trials over fault rates and model variants: what is asked, what was found, and the file that keeps it."""

from fitact_fx.campaigns.kinds import Draws, Exhaustive, Kind, RateSweep, SingleFaults
from fitact_fx.campaigns.planning import Plan, plan
from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.running import run_campaign
from fitact_fx.campaigns.store import Store

__all__ = [
    "CampaignResult",
    "Draws",
    "Exhaustive",
    "Kind",
    "Plan",
    "RateSweep",
    "SingleFaults",
    "Store",
    "plan",
    "run_campaign",
]
