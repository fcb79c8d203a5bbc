"""A campaign's resilience report: one page that needs no network, no script and no other file."""

import os
import tempfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.errors import CampaignError
from fitact_fx.reports.campaigns import costs, results, setup
from fitact_fx.reports.campaigns.figures import overview
from fitact_fx.reports.campaigns.html import Markup, element, joined, paragraph, section
from fitact_fx.reports.campaigns.maps import maps
from fitact_fx.reports.campaigns.style import STYLE
from fitact_fx.reports.campaigns.summary import answer
from fitact_fx.reports.campaigns.view import View
from fitact_fx.reports.campaigns.words import listed

Pictures = results.Pictures


def _summary(view: View) -> Markup:
    return joined(*(paragraph(one) for one in answer(view)))


def _alone(made: Callable[[View], Markup]) -> Callable[[View, Pictures], Markup]:
    """A section that shows no figure."""

    def with_none(view: View, _: Pictures) -> Markup:
        return made(view)

    return with_none


SECTIONS: tuple[tuple[str, str, Callable[[View, Pictures], Markup]], ...] = (
    ("summary", "Summary", _alone(_summary)),
    ("fault-model", "Fault model", _alone(setup.fault_model)),
    ("campaign", "Campaign", _alone(setup.campaign)),
    ("clean-cost", "Clean cost before faults", _alone(setup.clean_cost)),
    ("results", "Results per condition", results.results),
    ("comparison", "Comparison on the same faults", _alone(results.comparison)),
    ("breakdown", "Breakdown by site, tensor and bit", results.breakdown),
    ("coverage", "Coverage", _alone(costs.coverage)),
    ("overheads", "Measured overheads", _alone(costs.overheads)),
    ("failures", "Failures", _alone(costs.failures)),
    ("limits", "Limits", _alone(costs.limits)),
    ("environment", "Environment", _alone(setup.environment)),
)


def page(result: CampaignResult) -> str:
    """The whole report as HTML. The same result gives the same page. FitactError without matplotlib."""
    view = View(result)
    drawn = [*overview(view), *maps(view)] if result.rows else []
    pictures = {one.name: one for one in drawn}
    title = f"Resilience report: {listed(list(view.variants))}"
    about = f"{view.settings['kind']}, {view.settings['format']}, seed {view.settings['seed']}"
    links = (element("li", element("a", name, href=f"#{key}")) for key, name, _ in SECTIONS)
    body = element(
        "body",
        element("header", element("h1", title), paragraph(about)),
        element("nav", element("ol", *links), aria_label="Sections"),
        element("main", *(section(key, name, made(view, pictures)) for key, name, made in SECTIONS)),
    )
    head = element(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<link rel="icon" href="data:,">'),  # else a browser asks for one
        element("title", title),
        element("style", Markup(STYLE)),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{head}{body}</html>\n'


def write_page(result: CampaignResult, path: str | PathLike[str]) -> Path:
    """Writes `page(result)`: all of it or nothing, also where another process reads the file meanwhile.

    CampaignError where the folder cannot be written to.
    """
    text, target = page(result), Path(path)
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    except OSError as error:
        raise _unwritable(target, error) from error
    part = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        part.chmod(0o666 & ~_umask())  # a temporary file is for its owner alone
        part.replace(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        part.unlink(missing_ok=True)
    return target


def _umask() -> int:
    """What the process takes from new files' rights; there is no way to ask but to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritable(path: Path, error: OSError) -> CampaignError:
    return CampaignError(
        f"the report {path} cannot be written: {error.strerror};\n  give a path in a folder that can be"
    )
