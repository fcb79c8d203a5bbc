"""The section of tools/measure_campaigns.py's page that compares with other tools."""

from collections.abc import Mapping, Sequence
from typing import Any

from campaign_tables import goal, ms, table, times

GOAL = 5.0
MISSING = (
    "PyTorchFI and MRFI are not installed, so nothing was compared; install them with "
    '`pip install -e ".[bench]"` and measure this part again.'
)
_WORK = """\
**Equal work.** The same network, {images} images in one batch, and number of faults, float32 bit flips in the \
weights of convolutions and linear layers; one trial is injection, forward, judgement (accuracy and SDC) and \
restoring. ResNet-18 has random weights, and is right where it answers as without faults; ResNet-20 is trained. \
PyTorchFI gets the places and values of our lists, worked out beforehand, while ours draws its list within the trial; \
MRFI draws its own within its hooks. All have one trial in turn. *Ours, whole network*: eager, `suffixes=False, \
skip=False`, the same forward as the others'. *Eager* and *compiled*: all that `run_campaign` does by itself. \
Milliseconds per trial (median) and, below, the others' by the best of ours."""
_ANSWER = """\
**Equal answer.** Accuracy at two bit error rates and the SDC share of single faults, each to within {points:g} point \
at 95 %. The others have no rule to stop by, so their user plans the sample beforehand: {planned:,} single faults for \
a share to +-1 % (Leveugle et al., DATE 2009, p = 0.5), and {planned:,} draws for an accuracy, whose standard \
deviation between draws is not known and is 0.5 at most. Their time is **extrapolated**: seconds per trial (the \
median of turns before and behind our run) times the plan. Ours is `run_campaign(until={margin})`, with \
`compile=True` at the rates and cold compiler caches, set-up included, run to the end; where a pilot said that this \
takes more than the limit, it is **extrapolated** too (marked ~): set-up and seconds per trial of a shorter run, and \
the look at which its spread between draws would let it stop."""
_GAIN = """\
*Gain*: their time by ours, wall; the fastest of the others counts for the goal. *Same draws*: if their user had \
known the spread and run exactly as many draws as ours, so that only speed is left. *Processor*: the gain in the \
processes' own time, where the whole set-up of ours counts as wall time on top, its compiler's processes included."""


def peers(part: Mapping[str, Any]) -> list[str]:
    """Both comparisons, network by network."""
    if not part["versions"]:
        return [MISSING]
    versions = ", ".join(f"{name} {number}" for name, number in part["versions"].items())
    lines = [f"Beside {versions}.", _WORK.format(images=part["images"])]
    for name, found in part["networks"].items():
        lines += [f"{name}:", _work(found["work"], list(part["versions"]))]
    plan = {"points": 100 * part["margin"], "planned": part["planned"], "margin": part["margin"]}
    lines += [_ANSWER.format(**plan), _GAIN]
    for name, found in part["networks"].items():
        lines += [f"{name}:", _answers(found["answers"], list(part["versions"]), part["planned"])]
    return lines


def _work(cases: Sequence[Mapping[str, Any]], others: Sequence[str]) -> str:
    rows = [
        {"ms per trial": name, **{case["question"]: ms(case["seconds"][name]["wall"]) for case in cases}}
        for name in cases[0]["seconds"]
    ]
    for clock, label in (("wall", ""), ("cpu", ", processor")):
        for name in others:
            row = {"ms per trial": f"**{name} / ours{label}**"}
            rows.append(row | {case["question"]: _by_best(case["seconds"], name, clock) for case in cases})
    agree = {case["question"]: f"{case['agree']} of {case['trials']}" for case in cases if case["agree"] is not None}
    if agree:
        rows.append({"ms per trial": "trials where PyTorchFI found our accuracy", **agree})
    return table(rows)


def _by_best(seconds: Mapping[str, Mapping[str, float]], name: str, clock: str) -> str:
    ours = min(each[clock] for tool, each in seconds.items() if tool.startswith("ours"))
    return times(seconds[name][clock] / ours)


def _answers(cases: Sequence[Mapping[str, Any]], others: Sequence[str], planned: int) -> str:
    rows = [_answer(case, others, planned) for case in cases]
    total: dict[str, float] = {"ours": sum(case["ours"]["wall"] for case in cases)}
    for name in others:
        total[name] = sum(planned * case["peers"][name]["wall"] for case in cases)
        total[f"{name}, same"] = sum(case["ours"]["draws"] * case["peers"][name]["wall"] for case in cases)
        total[f"{name}, cpu"] = sum(planned * case["peers"][name]["cpu"] for case in cases)
    cpu = sum(_processor(case["ours"]) for case in cases)
    fastest = min(others, key=lambda name: total[name])
    row = {"question": "**all three**", "draws (of plan)": "", "ours [s]": f"{total['ours']:,.0f}"}
    for name in others:
        gain = total[name] / total["ours"]
        row[f"{name} [s]"] = f"{total[name]:,.0f}"
        row[f"gain on {name}"] = times(gain) + (goal(gain >= GOAL) if name == fastest else "")
        row[f"{name}: same draws"] = times(total[f"{name}, same"] / total["ours"])
        row[f"{name}: processor"] = times(total[f"{name}, cpu"] / cpu)
    return table([*rows, row])


def _answer(case: Mapping[str, Any], others: Sequence[str], planned: int) -> dict[str, str]:
    ours, about = case["ours"], "~" if case["ours"]["extrapolated"] else ""
    found = f"{100 * ours['mean']:.1f} % +-{100 * ours['half width']:.1f}, spread {ours['spread']:.2f}"
    row = {
        "question": f"{case['measure'].replace('sdc1', 'SDC')}, {case['question']}: {found}",
        "draws (of plan)": f"{about}{ours['draws']:,} ({ours['draws'] / planned:.0%}); {ours['run']:,} run",
        "ours [s]": f"{about}{ours['wall']:,.0f} (set-up {_setup(ours):,.0f})",
    }
    for name in others:
        theirs = case["peers"][name]
        row[f"{name} [s]"] = f"~{planned * theirs['wall']:,.0f}"
        row[f"gain on {name}"] = times(planned * theirs["wall"] / ours["wall"])
        row[f"{name}: same draws"] = times(ours["draws"] * theirs["wall"] / ours["wall"])
        row[f"{name}: processor"] = times(planned * theirs["cpu"] / _processor(ours))
    return row


def _setup(ours: Mapping[str, Any]) -> float:
    return float(ours["wall"] - ours["draws"] / ours["run"] * ours["trials"])


def _processor(ours: Mapping[str, Any]) -> float:
    return float(ours["cpu"]) + _setup(ours)
