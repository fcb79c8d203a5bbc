"""What happens to a value beyond its bound. A policy is a value: `policy(values, bounds) -> values`.

`limits` says what values are compared with and why that is not the bound itself, `hard` holds the policies that a
scheme can leave in place, one file each, `smooth` the form that bounds are learned in and none at all, `feature_maps`
what a policy needs that looks at whole feature maps.
"""

from fitact_fx.policies.feature_maps import FeatureMaps, at_dim
from fitact_fx.policies.hard import is_hard, named, names, numbers_of
from fitact_fx.policies.hard.average import Average
from fitact_fx.policies.hard.backflip import BackFlip
from fitact_fx.policies.hard.clamp import Clamp
from fitact_fx.policies.hard.rescale import Rescale
from fitact_fx.policies.hard.zero import Zero
from fitact_fx.policies.limits import SCALE_SHARE, Bounds, HasLimits, Policy, scale_of, slack
from fitact_fx.policies.smooth import Pass, Smooth

__all__ = [
    "SCALE_SHARE",
    "Average",
    "BackFlip",
    "Bounds",
    "Clamp",
    "FeatureMaps",
    "HasLimits",
    "Pass",
    "Policy",
    "Rescale",
    "Smooth",
    "Zero",
    "at_dim",
    "is_hard",
    "named",
    "names",
    "numbers_of",
    "scale_of",
    "slack",
]
