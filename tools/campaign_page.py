"""The page of tools/measure_campaigns.py: one section for each part that was measured."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from campaign_page_peers import peers
from campaign_tables import COMMAND, conditions, goal, ms, table

OVERHEAD, SUFFIXES, WORKERS = 0.05, 0.55, 1.7  # what was aimed at

_OVERHEAD = """\
ResNet-20 with its trained weights, CIFAR-10 test images in one batch, Q15.16 bit flips over all parameters, \
`compile=True, suffixes=False, skip=False`. *Campaign*: everything that `run_campaign` does behind its set-up \
(compilation, clean pass), which is the same loop driven from outside: draw, inject, forward, judge, restore, write \
to the store, decide what is next. *Bare*: `torch.compile(model)(images)` under `torch.inference_mode()`, no faults, \
no judgement. Sides take turns, a block of the campaign (about half a second) and as many bare forwards. *Overhead* \
is (campaign - bare) / bare, from the medians over the turns, and from the least times."""
_PIECES = "What a trial does besides its forward, processor milliseconds, each piece right behind a forward:"
_SUFFIXES = """\
ResNet-50 for CIFAR-10 with its trained weights, Q15.16. The same single faults for every side: {trials} in the \
weight of each of the {layers} convolution and linear layers, so each depth counts alike; {images} images in one \
batch. Trials only, without set-up: each side runs a layer's trials in turn, {rounds} rounds, and of each layer the \
least time counts. Rows of the eager sides were compared in all columns but `seconds` and `way`: equal. Clean values \
kept: {kept:.0f} MB. *By cost*: the compiled whole network, or the suffix in eager mode, whatever measured costs say \
is quicker."""
_WORKERS = """\
`run_campaign(workers=2)` against `workers=1`, one thread each, ResNet-20, {images} images, BER {rate}, {trials} \
trials a run, {rounds} runs of each in turn; seconds as the store has them: everything behind the set-up, starting \
and ending the workers included. The rows were compared: equal. *Plain forwards* is what the machine itself gives: as \
many forwards in each of two processes at once as in one alone. Dask: `LocalCluster(n_workers=2, \
threads_per_worker=1, processes=True)`, sending the model and data included."""


def page(found: Mapping[str, Any]) -> str:
    """What was measured, ratios first in each part."""
    sections: dict[str, tuple[str, Callable[[Mapping[str, Any]], list[str]]]] = {
        "overhead": ("Beyond the forwards", _overhead),
        "suffixes": ("Only what depends on the fault", _suffixes),
        "peers": ("Beside other tools", peers),
        "workers": ("Two workers", _workers),
    }
    clocks = (
        f"`{COMMAND}`, one thread each; the two sides of a ratio come from one run and take turns. *Wall*: what a "
        "clock shows. *Processor*: the time of the process itself, which a busy machine disturbs less."
    )
    lines = ["# What a campaign costs", clocks]
    for name, part in found.items():
        title, told = sections[name]
        lines += [f"## {title}", conditions(name, part), *told(part)]
    return "\n\n".join(lines) + "\n"


def _overhead(part: Mapping[str, Any]) -> list[str]:
    rows = [
        {
            "images": str(case["images"]),
            "BER": case["rate"],
            f"overhead, wall (at most {OVERHEAD:.0%})": _over(case, "wall"),
            "processor": _over(case, "cpu"),
            "least, wall": _over(case, "least wall"),
            "least, processor": _over(case, "least cpu"),
            "bare [ms]": ms(case["bare"]["wall"]),
            "campaign [ms]": ms(case["campaign"]["wall"]),
            "trials (turns)": f"{case['trials']} ({case['campaign']['turns']})",
        }
        for case in part["cases"]
    ]
    pieces = [
        {
            "images": str(case["images"]),
            "BER": case["rate"],
            **{name: ms(seconds) for name, seconds in case["pieces"].items()},
            "the rest": ms(max(0.0, _rest(case))),
        }
        for case in part["cases"]
    ]
    return [_OVERHEAD, table(rows), _PIECES, table(pieces)]


def _rest(case: Mapping[str, Any]) -> float:
    return float(case["campaign"]["cpu"] - case["bare"]["cpu"] - sum(case["pieces"].values()))


def _over(case: Mapping[str, Any], clock: str) -> str:
    share = case["campaign"][clock] / case["bare"][clock] - 1
    return f"{100 * share:.1f} %{goal(share <= OVERHEAD) if clock == 'wall' else ''}"


def _suffixes(part: Mapping[str, Any]) -> list[str]:
    whole = part["sides"]["whole"]
    rows = []
    for name, side in part["sides"].items():
        share = side["wall"] / whole["wall"]
        judged = goal(share <= SUFFIXES) if name == "suffixes" else ""
        rows.append(
            {
                "side": name,
                f"/ whole, wall (at most {SUFFIXES})": f"{share:.2f}{judged}",
                "processor": f"{side['cpu'] / whole['cpu']:.2f}",
                "ms per trial": ms(side["wall"]),
                "trials by way": ", ".join(f"{count} {way}" for way, count in side["ways"].items()),
            }
        )
    text = _SUFFIXES.format(**{key: part[key] for key in ("trials", "layers", "images", "rounds")}, kept=_kept(part))
    differing = part["differing rows, compiled"]
    if differing is not None:
        text += f" Compiled code rounds otherwise than eager code: these two differ in {differing} trials."
    return [text, table(rows), "By layer, eager, from the input to the output:", _by_layer(part["by layer"])]


def _kept(part: Mapping[str, Any]) -> float:
    return float(part["kept bytes"]) / 1e6


def _by_layer(layers: Mapping[str, Mapping[str, float]], groups: int = 6) -> str:
    """Some layers in a line: what a fault at that depth leaves to be done."""
    cells, rows = list(layers), []
    for group in range(groups):
        some = cells[group * len(cells) // groups : (group + 1) * len(cells) // groups]
        if some:
            share = sum(layers[cell]["suffixes"] for cell in some) / sum(layers[cell]["whole"] for cell in some)
            rows.append({"layers": f"{some[0]} to {some[-1]}", "suffixes / whole, wall": f"{share:.2f}"})
    return table(rows)


def _workers(part: Mapping[str, Any]) -> list[str]:
    seconds, bare = part["runs"], part["bare"]
    gain = median(seconds["one"]) / median(seconds["two"])
    rows = [
        {"what": "two workers / one", "times the trials (medians)": f"{gain:.2f}{goal(gain >= WORKERS)}"},
        {
            "what": "two workers / one, quickest runs",
            "times the trials (medians)": f"{min(seconds['one']) / min(seconds['two']):.2f}",
        },
        {
            "what": "plain forwards in two processes / in one",
            "times the trials (medians)": f"{2 * median(bare['one']) / median(bare['two']):.2f}",
        },
    ]
    if seconds["dask"]:
        dask = median(seconds["one"]) / median(seconds["dask"])
        rows.append({"what": "Dask, two workers / one", "times the trials (medians)": f"{dask:.2f}"})
    text = _WORKERS.format(**{key: part[key] for key in ("images", "rate", "trials", "rounds")})
    return [text, table(rows), f"Goal: at least {WORKERS} on two idle cores. Seconds of each run:", _runs(seconds)]


def _runs(seconds: Mapping[str, Sequence[float]]) -> str:
    return table(
        [
            {"workers": name, "seconds": ", ".join(f"{one:.1f}" for one in some)}
            for name, some in seconds.items()
            if some
        ]
    )
