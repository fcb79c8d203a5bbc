"""What differs between the campaign that a store holds and the one that is asked for, in sentences."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from fitact_fx.campaigns.rows import Condition

Settings = Mapping[str, Any]

MEASURED = frozenset(("clean", "seconds", "coverage", "parameter_bytes", "bound_bytes", "guard_bytes"))
"""What a campaign finds out about a variant, which is not what it was asked for."""

_MOST = 10
_LONG = 80  # a value that takes more than this is cut: the sentence is about its name
_OF_THE_DATA = ("data", "samples", "labelled", "batches")


def settings_to_compare(settings: Settings) -> dict[str, Any]:
    """The settings without what was measured, as JSON gives them back."""
    variants = {
        name: {key: value for key, value in facts.items() if key not in MEASURED}
        for name, facts in settings["variants"].items()
    }
    compared: dict[str, Any] = json.loads(json.dumps({**settings, "variants": variants}))
    return compared


def differences(
    there: Settings, here: Settings, conditions_there: Sequence[Condition], conditions_here: Sequence[Condition]
) -> list[str]:
    """One sentence each, at most ten, the last of which then says how many more there are. None: the same campaign."""
    old, new = settings_to_compare(there), settings_to_compare(here)
    of_settings = [*_of_settings(old, new), *_of_the_data(old, new), *_of_variants(old["variants"], new["variants"])]
    found = [*of_settings, *_of_conditions(conditions_there, conditions_here, old.get("trials") != new.get("trials"))]
    if len(found) <= _MOST:
        return found
    return [*islice(found, _MOST - 1), f"and {len(found) - _MOST + 1} more differences"]


def _of_settings(there: Settings, here: Settings) -> Iterator[str]:
    # Other data has other counts as well; that is one difference and not four.
    told_later = {"variants", "data"} | (set(_OF_THE_DATA) if there.get("data") != here.get("data") else set())
    yield from _by_key(_without(there, told_later), _without(here, told_later), "it was made")


def _of_the_data(there: Settings, here: Settings) -> Iterator[str]:
    if there.get("data") == here.get("data"):
        return
    old, new = there.get("samples"), here.get("samples")
    if old == new:
        yield f"the data is not the same: {_shown(old)} samples there and here, with other values or labels"
    else:
        yield f"the data is not the same: {_shown(old)} samples there, {_shown(new)} here"


def _of_variants(there: Settings, here: Settings) -> Iterator[str]:
    yield from (f"the variant {name!r} of the store is not in this call" for name in there if name not in here)
    yield from (f"the variant {name!r} of this call is not in the store" for name in here if name not in there)
    for name in (name for name in there if name in here):
        old, new = there[name], here[name]
        if old.get("class") == new.get("class") and old.get("fingerprint") != new.get("fingerprint"):
            yield f"variant {name!r} has other parameters or bounds than the one in the store"
        yield from _by_key(_without(old, {"fingerprint"}), _without(new, {"fingerprint"}), f"variant {name!r} was made")
    if there.keys() == here.keys() and list(there) != list(here):
        yield f"the variants come in another order: {', '.join(there)} there, {', '.join(here)} here"


def _of_conditions(there: Sequence[Condition], here: Sequence[Condition], trials_told: bool) -> Iterator[str]:
    old, new = ({one.name: asdict(one) for one in conditions} for conditions in (there, here))
    yield from (f"the condition {name!r} of the store is not in this call" for name in old if name not in new)
    yield from (f"the condition {name!r} of this call is not in the store" for name in new if name not in old)
    left_out = {"name", "trials"} if trials_told else {"name"}
    for name in (name for name in old if name in new):
        was, is_ = _without(old[name], left_out), _without(new[name], left_out)
        yield from _by_key(was, is_, f"condition {name!r} was made")
    if old.keys() == new.keys() and list(old) != list(new):
        yield "the conditions come in another order"


def _by_key(there: Settings, here: Settings, subject: str, prefix: str = "") -> Iterator[str]:
    """`it was made with format 'q15.16', and this call has 'float32'`, for each key; inside mappings as a.b."""
    for key in dict.fromkeys((*there, *here)):
        name = f"{prefix}{key}"
        if key not in there:
            yield f"{subject} without {name}, and this call has {_shown(here[key])}"
        elif key not in here:
            yield f"{subject} with {name} {_shown(there[key])}, and this call is without"
        elif isinstance(there[key], dict) and isinstance(here[key], dict):
            yield from _by_key(there[key], here[key], subject, f"{name}.")
        # As text, where a NaN is equal to itself and True is not 1.
        elif json.dumps(there[key]) != json.dumps(here[key]):
            yield f"{subject} with {name} {_shown(there[key])}, and this call has {_shown(here[key])}"


def _without(one: Settings, keys: Collection[str]) -> Settings:
    return {key: value for key, value in one.items() if key not in keys}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"
