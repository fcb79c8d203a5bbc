"""What a user may give to `run_campaign`, checked before anything runs. Every complaint is a CampaignError."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from fitact_fx.campaigns.kinds import Draws, Kind, RateSweep
from fitact_fx.campaigns.scoring import Metric
from fitact_fx.errors import CampaignError
from fitact_fx.faults import FaultModel
from fitact_fx.passes.injecting import SIDES

MEASURES = ("accuracy", "sdc1", "sdc5", "due")
_COLUMNS = {*MEASURES, *"variant cell rate tensor bit site trial faults way seconds error checksum".split()}


def named_models(given: object) -> dict[str, nn.Module]:
    """The variants, by name, in their order."""
    if not isinstance(given, Mapping) or not given:
        what = "there are no variants" if isinstance(given, Mapping) else f"variants is a {type(given).__name__}"
        raise CampaignError(f"{what};\n  give models by name, such as {{'plain': model, 'hard': hard}}")
    for name, model in given.items():
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise CampaignError(f"a variant is called {name!r};\n  give each a name that can be printed")
        if not isinstance(model, nn.Module):
            raise CampaignError(f"variant {name!r} is a {type(model).__name__} and not an nn.Module")
    return dict(given)


def named_metrics(given: object) -> dict[str, Metric]:
    """The user's metrics, by name."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise CampaignError(f"metrics is a {type(given).__name__};\n  give functions by name: {{'iou': function}}")
    for name, metric in given.items():
        if not isinstance(name, str) or not name.isprintable() or name in _COLUMNS:
            raise CampaignError(f"a metric is called {name!r}: no name, or that of another column;\n  rename it")
        if not callable(metric):
            raise CampaignError(f"metric {name!r} is a {type(metric).__name__} and no function of (outputs, targets)")
    return dict(given)


def measure_named(given: str | None, metrics: Mapping[str, Metric]) -> str:
    """The column that a stop rule looks at; "" if the user left that open."""
    if given is not None and given not in (*MEASURES, *metrics):
        raise CampaignError(f"there is no {given!r} to measure;\n  choose one of {', '.join((*MEASURES, *metrics))}")
    return given or ""


def half_width(given: object, metrics: Mapping[str, Metric], measure: str) -> float | None:
    """How narrow an interval is to be: a share, or in the unit of the user's metric."""
    if given is None:
        return None
    most = float("inf") if measure in metrics else 1.0
    if isinstance(given, bool) or not isinstance(given, float | int) or not 0 < given < most:
        problem = f"until is {given!r}, and it is the half-width of an interval, as a share"
        raise CampaignError(f"{problem};\n  give 0.01 for +-1 point")
    return float(given)


def confidence_level(given: object) -> float:
    """Between 0 and 1."""
    if not isinstance(given, float) or not 0 < given < 1:
        raise CampaignError(f"a confidence lies between 0 and 1; got {given!r}")
    return given


def whole(name: str, value: object, least: int | None) -> int:
    """A whole number, from `least` up if that is not None."""
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise CampaignError(f"{name} is a whole number{'' if least is None else f' from {least} up'}; got {value!r}")
    return value


def side_of(where: object) -> str:
    """Before or after the bounds."""
    if where not in SIDES:
        raise CampaignError(f"where is {where!r};\n  give one of {', '.join(SIDES)}")
    return str(where)


def kind_asked(fault: Callable[..., FaultModel] | FaultModel, rates: object, kind: object) -> Kind:
    """What is asked: exactly one of rates, a kind, and a fault model that says itself how often it strikes."""
    given = [what for what, value in (("rates", rates), ("kind", kind)) if value is not None]
    if isinstance(fault, FaultModel):
        if given:
            problem = f"fault says itself how often it strikes ({fault.describe()}), and {given[0]} as well"
            raise CampaignError(f"{problem};\n  give the fault model alone, such as fault={type(fault).__name__}")
        return Draws(fault)
    if len(given) != 1:
        problem = "both rates and a kind were given" if given else "nothing says how often faults strike"
        raise CampaignError(f"{problem};\n  give rates=[1e-6, 1e-5], or kind=SingleFaults() or another one")
    if isinstance(kind, Kind):
        return kind
    if kind is not None:
        raise CampaignError(f"kind is {kind!r};\n  give a value, such as kind=SingleFaults(per='tensor')")
    if not isinstance(rates, Iterable) or isinstance(rates, str):
        raise CampaignError(f"rates are numbers, such as [1e-6, 1e-5]; got {rates!r}")
    return RateSweep(tuple(rates))


def texts(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """One text, or several, or none."""
    return None if given is None else (given,) if isinstance(given, str) else tuple(map(str, given))
