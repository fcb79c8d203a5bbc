"""The sections that say what was done: fault model, campaign, how to do one trial again, clean cost, environment."""

import json
from collections.abc import Mapping
from typing import Any

from fitact_fx.campaigns.rows import Condition, Row
from fitact_fx.reports.campaigns.html import Markup, element, facts, folded, joined, long_table, paragraph, table
from fitact_fx.reports.campaigns.replay import kept, replay
from fitact_fx.reports.campaigns.summary import stop_rule
from fitact_fx.reports.campaigns.view import View
from fitact_fx.reports.campaigns.words import (
    NOTHING,
    cell_name,
    count,
    duration,
    listed,
    measure_name,
    number,
    span,
)

_KEYS = 20
_PERSISTENCE = {
    "memory": "faults stay in memory while all samples are evaluated",
    "permanent": "permanent: the same element of every sample is hit",
    "transient": "transient: each sample has faults of its own",
}


def fault_model(view: View) -> Markup:
    """What goes wrong, where, and for how long."""
    settings = view.settings
    spans = {name: f"{bits[0]}" if len(bits) == 1 else f"{bits[0]} to {bits[-1]}" for name, bits in view.fields.items()}
    fields = ", ".join(f"{name} {bits}" for name, bits in spans.items())
    told = [
        ("fault", f"{settings['fault']} (effect: {settings['effect']})"),
        ("memories", listed(list(settings["targets"]))),
        ("format", f"{settings['format']}: bits {fields}" if fields else settings["format"]),
        ("persistence", _PERSISTENCE.get(settings["persistence"], settings["persistence"])),
    ]
    if settings.get("at"):
        told.append(("activations at", f"{', '.join(settings['at'])} ({settings['where']} the bound)"))
    return facts(told)


def campaign(view: View) -> Markup:
    """Population, draws, seed, data, stop rule, and the keys under which the fault lists come again."""
    return joined(
        facts(_facts(view)),
        paragraph(stop_rule(view)),
        element("h3", "Fault lists, and how to replay one trial"),
        paragraph(
            "A list is drawn again, the same on every machine, from the seed, the trial and the names and sizes of the "
            "tensors; the checksum says whether it is the same list. These are the trials that hurt most."
        ),
        _keys(view),
        replay(view),
    )


def _facts(view: View) -> list[tuple[str, str]]:
    settings = view.settings
    plan = span([one.trials for one in view.result.conditions])
    done = span([len(rows) for rows in view.rows.values()])
    # Rates strike all of it each time; single faults strike one stratum at a time.
    populations = [one.population for one in view.result.conditions]
    places = max(populations, default=0) if view.rates else sum(populations)
    unseen = ", and as far as what none has shown" if settings.get("until") is not None else ""
    told = [
        ("kind", settings["kind"]),
        ("conditions", f"{len(view.result.conditions):,}, for each of {count(len(view.variants), 'variant')}"),
        ("population", f"{places:,} places where a single fault could strike"),
        ("draws", f"{done} per condition and variant, of {plan} planned; every variant gets the same faults"),
        ("seed", str(settings["seed"])),
        ("data", _data(settings)),
        ("evaluated", "compiled" if settings.get("compile") else "eager" + _short_ways(settings)),
        ("intervals", f"{100 * view.confidence:g} %, BCa bootstrap over the draws{unseen}; Wilson for shares of draws"),
    ]
    if view.metrics:
        told.append(("own metrics", ", ".join(view.metrics)))
    return told


def _short_ways(settings: Mapping[str, Any]) -> str:
    ways = [name for key, name in (("suffixes", "suffixes re-run"), ("skip", "no-ops skipped")) if settings.get(key)]
    return f", {', '.join(ways)}" if ways else ""


def _data(settings: Mapping[str, Any]) -> str:
    batches = list(settings.get("batches") or ())
    of = f" in {count(len(batches), 'batch').replace('batchs', 'batches')}" if batches else ""
    samples = f"{count(settings['samples'], 'sample')}{of}, {settings['labelled']:,} with a label"
    return f"{samples}; fingerprint {settings['data']}"


def _keys(view: View) -> Markup:
    """(condition, trial, checksum) of the worst trial of each condition, for each variant."""
    found = [
        (cell, row)
        for cell in view.result.conditions
        for name in view.variants
        if (row := view.worst_row(name, cell.name)) is not None
    ]
    rows = [_key(view, cell, row) for cell, row in found]
    hurt = sorted(range(len(found)), key=lambda at: kept(found[at][1]))[:_KEYS]
    headers = ("condition", "variant", "seed", "trial", "faults", measure_name(view.main), "checksum of the list")
    return long_table("Worst trials", headers, rows, [rows[at] for at in sorted(hurt)], words=2)


def _key(view: View, cell: Condition, row: Row) -> tuple[str, ...]:
    value = row.accuracy if view.labelled else row.metrics.get(view.main, row.due)
    seed = str(view.settings["seed"])
    return cell_name(cell), row.variant, seed, str(row.trial), f"{row.faults:,}", number(value, view.main), row.checksum


def clean_cost(view: View) -> Markup:
    """What each variant gives and costs while nothing is wrong."""
    names = [
        one for one in ("accuracy", *view.metrics, "due") if any(view.clean(v, one) is not None for v in view.variants)
    ]
    headers = [
        "variant",
        *(_headed(one) for one in names),
        *(f"{_headed(one)}, change" for one in names if one != "due"),
    ]
    rows = []
    for variant in view.variants:
        values = [number(view.clean(variant, one), one) for one in names]
        changes = [_change(view, variant, one) for one in names if one != "due"]
        rows.append([variant, *values, *changes])
    said = "Measured before any fault, on the same samples. Changes are against the first variant."
    return joined(paragraph(said), table("Clean cost", headers, rows))


def _headed(measure: str) -> str:
    return f"{measure_name(measure)} in %" if measure in ("accuracy", "due") else measure


def _change(view: View, variant: str, measure: str) -> str:
    here, there = view.clean(variant, measure), view.clean(view.reference, measure)
    if here is None or there is None or variant == view.reference:
        return NOTHING
    change = here - there
    shown = number(abs(change), measure)
    return shown if not float(shown) else f"{'+' if change > 0 else '-'}{shown}"


def environment(view: View) -> Markup:
    """Each process that worked on this campaign: versions, platform, threads."""
    sessions = view.result.sessions
    if not sessions:
        return paragraph("No session is recorded.")
    last = sessions[-1]
    versions = ", ".join(f"{name} {version}" for name, version in dict(last.get("versions") or {}).items())
    told = [("versions", versions or NOTHING), ("platform", str(last.get("platform", NOTHING)))]
    told.append(("processor", str(last.get("cpu", NOTHING))))
    told.append(
        ("threads", f"{last.get('threads', NOTHING)} in each of {count(int(last.get('workers') or 1), 'worker')}")
    )
    rows = [
        [str(one.get("started", NOTHING)), f"{one.get('trials', 0):,}", duration(float(one.get("seconds") or 0.0))]
        + [str(one.get(name, NOTHING)) for name in ("workers", "threads", "platform")]
        for one in sessions
    ]
    listing = table("Sessions", ("started", "trials", "time", "workers", "threads", "platform"), rows)
    odd = {json.dumps(one.get("versions"), sort_keys=True) for one in sessions}
    warned = "" if len(odd) < 2 else "The sessions had different versions of libraries: trials may differ between them."
    return joined(facts(told), paragraph(warned), folded(count(len(sessions), "session"), listing))
