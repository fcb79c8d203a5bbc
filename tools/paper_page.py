"""docs/paper.md: the tables and figures between its two marks; what stands around them is written by people."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from paper_networks import NETWORKS
from tabulate import tabulate

from fitact_fx.campaigns import CampaignResult
from fitact_fx.campaigns.store import Store
from fitact_fx.reports.campaigns.figures import rate_figure
from fitact_fx.reports.campaigns.view import View
from fitact_fx.statistics import Interval

BEGIN, END = "<!-- tables: begin, written by tools/paper.py -->", "<!-- tables: end -->"
STEPS = (
    ("FitAct", "Clip-Act"),
    ("Clip-Act", "Ranger"),
    ("Ranger", "none"),
    ("FitAct", "neuron maxima"),
    ("guard", "FitAct"),
    ("FitAct + guard", "guard"),
)
RESULTS = Path(__file__).parent / "results"


def write_page(store: Path, networks: Sequence[str], formats: Sequence[str], page: Path) -> None:
    """Replace what stands between the marks of `page`; draw its figures beside it; keep the draws as JSON.

    Every network and format has a file of its own in tools/results, so that each can be measured anew by itself: what
    `store` lacks is taken from there.
    """
    for network in networks:
        for stored in formats:
            if (path := store / f"{network}-{stored}.db").exists():
                _keep(network, stored, Store.read(path), store, page)
    files = [RESULTS / _name(network, stored) for network in NETWORKS for stored in ("q15.16", "float32")]
    told = [json.loads(file.read_text("utf-8")) for file in files if file.exists()]
    parts = ["## The order\n\n" + _table([each["order"] for each in told], _HEADS), *(each["section"] for each in told)]
    text = page.read_text("utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}", "utf-8")


def _name(network: str, stored: str) -> str:
    return f"paper_{network}_{stored.replace('.', '_')}.json"


def _keep(network: str, stored: str, result: CampaignResult, store: Path, page: Path) -> None:
    """What the page says of one network in one format, and what it says so from."""
    section = "\n\n".join(_section(network, stored, result, store, page))
    told = {"order": _order(network, stored, result), "section": section, **_draws(network, stored, result, store)}
    (RESULTS / _name(network, stored)).write_text(json.dumps(told) + "\n", "utf-8")


def _order(network: str, stored: str, result: CampaignResult) -> list[str]:
    """The differences in area under accuracy against log10 rate, each with its interval over the paired draws."""
    steps = [_points(result.area_difference(*step)) if set(step) <= set(result.variants) else "" for step in STEPS]
    return [NETWORKS[network].title, stored, *steps]


_HEADS = ["network", "format", *(f"{one} - {other}" for one, other in STEPS)]


def _section(network: str, stored: str, result: CampaignResult, store: Path, page: Path) -> Iterator[str]:
    cells = [one.name for one in result.conditions]
    heads = [f"{one.rate:.0e}".replace("e-0", "e-") for one in result.conditions]
    draws = len(result.values(result.variants[0], cells[0]))
    images = result.settings["samples"]
    yield f"## {NETWORKS[network].title}, {stored}"
    yield (
        f"{draws} draws a rate; {images} test images a draw; clean accuracy on all 10,000. Accuracy in %, with the "
        "95 % interval of the mean over draws, the worst draw in parentheses."
    )
    clean, costs = _clean(network, store), _costs(network, store)
    about = result.settings["variants"]
    rows = []
    for name in result.variants:
        accuracies = [_share(result.interval(name, cell), result.worst(name, cell)) for cell in cells]
        bytes_ = [f"{about[name][what]:,}" for what in ("bound_bytes", "guard_bytes")]
        times = [f"{costs[name][how]:.2f}" if name in costs else "" for how in ("eager", "compiled")]
        same = f"{100 * about[name]['clean']['accuracy']:.1f}"
        rows.append([name, clean.get(name, ""), same, *accuracies, *bytes_, *times])
    columns = ["variant", "clean", "clean, these images", *heads, "bound bytes", "limit bytes"]
    yield _table(rows, [*columns, "time, eager", "time, compiled"])
    yield (
        "SDC-1 (another answer, and nothing showed it, in % of the images that are right without faults) and DUE (NaN "
        "or infinity in the output, in % of all), mean over draws:"
    )
    rows = [
        [
            name,
            *(
                " / ".join(f"{100 * result.values(name, cell, what).mean():.1f}" for what in ("sdc1", "due"))
                for cell in cells
            ),
        ]
        for name in result.variants
    ]
    yield _table(rows, ["variant", *heads])
    folder = page.parent / "figures"
    folder.mkdir(exist_ok=True)
    picture = folder / f"paper-{network}-{stored.replace('.', '_')}.svg"
    with rc_context({"svg.hashsalt": network}):  # the same figure is the same file
        rate_figure(View(result)).savefig(picture, metadata={"Date": None})
    yield f"![Accuracy against bit error rate on {NETWORKS[network].title}](figures/{picture.name})"


def _clean(network: str, store: Path) -> dict[str, str]:
    """On all test images."""
    told = Store.read(store / f"{network}-clean.db").settings["variants"]
    return {name: f"{100 * each['clean']['accuracy']:.2f}" for name, each in told.items()}


def _costs(network: str, store: Path) -> dict[str, dict[str, float]]:
    path = store / f"{network}-costs.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _share(interval: Interval, worst: float) -> str:
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}] ({100 * worst:.1f})"


def _points(interval: Interval) -> str:
    return f"{100 * interval.mean:+.2f} [{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]"


def _table(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def _draws(network: str, stored: str, result: CampaignResult, store: Path) -> dict[str, Any]:
    """Every draw's accuracy, SDC-1 and DUE, to compute anything else from."""
    measured = {
        name: {
            one.name: {
                what: [round(float(v), 6) for v in result.values(name, one.name, what)]
                for what in ("accuracy", "sdc1", "due")
            }
            for one in result.conditions
        }
        for name in result.variants
    }
    about = {"network": network, "format": stored, "seed": result.settings["seed"]}
    return about | {"clean": _clean(network, store), "costs": _costs(network, store), "draws": measured}
