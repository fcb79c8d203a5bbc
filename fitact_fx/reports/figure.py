"""Accuracy over bit error rate as a picture, where matplotlib is installed."""

from pathlib import Path

from fitact_fx.reports.comparison import Comparison

# Okabe and Ito's, which readers with any colour vision tell apart; black is the unprotected model.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2")


def draw_accuracies(comparison: Comparison, title: str, path: Path) -> bool:
    """Write a PNG with one line per variant, its 95 % intervals as bars; False if there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(6.4, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for number, variant in enumerate(comparison.variants):
        intervals = [comparison.campaign.interval(variant, cell) for cell in comparison.rates]
        means = [100 * each.mean for each in intervals]
        # A single draw has no interval: its ends are infinite.
        reach = [
            [100 * max(0.0, end) if end < 1 else 0 for end in ends]
            for ends in zip(*((i.mean - i.low, i.high - i.mean) for i in intervals), strict=True)
        ]
        colour = _COLOURS[number % len(_COLOURS)]
        label = f"{variant} (clean {100 * comparison.clean(variant):.1f} %)"
        axes.errorbar(
            list(comparison.rates.values()), means, yerr=reach, color=colour, marker="o", capsize=3, label=label
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 102)
    axes.set_xlabel("bit error rate (parameters and bounds)")
    axes.set_ylabel("accuracy in %, mean and 95 % interval")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path)
    return True
