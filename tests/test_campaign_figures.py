"""Figures of campaigns: what is drawn is what was measured, and it can be told apart without colours."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import synthetic_campaigns as synthetic
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from fitact_fx.campaigns.rows import Condition
from fitact_fx.errors import FitactError
from fitact_fx.reports.campaigns import maps
from fitact_fx.reports.campaigns.drawing import Picture, style
from fitact_fx.reports.campaigns.figures import figures, rate_figure, single_figure
from fitact_fx.reports.campaigns.view import View

SVG = "{http://www.w3.org/2000/svg}"


def named(pictures: tuple[Picture, ...]) -> dict[str, Picture]:
    return {picture.name: picture for picture in pictures}


def accuracies(view: View, variant: str, cell: str) -> np.ndarray:
    rows = [row for row in view.result.rows if (row.variant, row.cell) == (variant, cell)]
    return np.array([row.accuracy for row in rows], dtype=float)


def test_each_kind_of_campaign_has_its_figures() -> None:
    expected = {
        synthetic.rate_sweep: ["figure-rates"],
        synthetic.per_tensor: ["figure-single", "figure-tensors"],
        synthetic.per_bit: ["figure-single", "figure-bits"],
        synthetic.per_site: ["figure-single", "figure-sites"],
        synthetic.single: ["figure-single"],
        synthetic.exhaustive: ["figure-single", "figure-tensors", "figure-bits", "figure-pairs-0", "figure-pairs-1"],
    }
    for make, names in expected.items():
        assert list(named(figures(make()))) == names


def test_the_lines_are_the_means_over_the_draws_on_a_logarithmic_axis() -> None:
    view = View(synthetic.rate_sweep())
    (axes,) = rate_figure(view).axes
    assert axes.get_xscale() == "log"
    labelled = {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert list(labelled) == ["plain (clean 92.4 %)", "ranger (clean 92.4 %)", "fitact (clean 92.1 %)"]
    for variant, line in zip(view.variants, labelled.values(), strict=True):
        means = [100 * accuracies(view, variant, f"{rate:g}").mean() for rate in synthetic.RATES]
        np.testing.assert_allclose(line.get_xydata(), np.column_stack([synthetic.RATES, means]))


def test_worst_draws_are_faint_markers_and_clean_levels_dashed() -> None:
    view = View(synthetic.rate_sweep(("plain",)))
    (axes,) = rate_figure(view).axes
    _, level, worst = axes.lines
    assert set(level.get_ydata()) == {92.4}  # type: ignore[arg-type]
    assert level.get_linestyle() == "--"
    lowest = [100 * accuracies(view, "plain", f"{rate:g}").min() for rate in synthetic.RATES]
    np.testing.assert_allclose(worst.get_ydata(), lowest)
    assert worst.get_linestyle() == "None"
    assert (worst.get_alpha() or 1) < 0.5


def test_bands_are_the_intervals() -> None:
    view = View(synthetic.rate_sweep(("plain",)))
    (axes,) = rate_figure(view).axes
    (band,) = axes.collections
    outline = band.get_paths()[0].vertices
    found = view.result.interval("plain", "1e-05")
    heights = sorted(set(outline[np.isclose(outline[:, 0], 1e-5)][:, 1]))
    np.testing.assert_allclose(heights, [100 * found.low, 100 * found.high])


def test_a_single_draw_has_a_point_and_no_band_and_rate_0_no_place() -> None:
    result = synthetic.rate_sweep(("plain",), trials=1)
    (axes,) = rate_figure(View(result)).axes
    outline = axes.collections[0].get_paths()[0].vertices
    assert set(np.round(outline[:, 1], 6)) == set(np.round(axes.lines[0].get_ydata(), 6))  # type: ignore[arg-type]
    zero = synthetic.campaign(
        ("plain",), [Condition("0", 2, 9, rate=0.0)], lambda *_: (0.9, 0.0, 0.0, 0.0), {"kind": "rate sweep"}
    )
    assert figures(zero) == ()


def test_variants_differ_in_more_than_colour() -> None:
    looks = [style(number) for number in range(35)]
    assert len({(str(look.dashes), look.marker) for look in looks}) == 35
    assert len({look.hatch for look in looks[:7]}) == 7
    # Okabe and Ito's colours, without the yellow that is too light on white.
    assert {look.colour for look in looks[:7]} == {
        "#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
    }  # fmt: skip


def bars(axes: Axes) -> list[list[float]]:
    return [[bar.get_width() for bar in container] for container in axes.containers if hasattr(container, "patches")]


def test_tensors_are_bars_in_network_order_from_the_top() -> None:
    view = View(synthetic.per_tensor(12))
    (axes,) = maps.bars(view, view.tensors).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [one.name for one in view.result.conditions]
    assert axes.yaxis_inverted()
    for variant, widths in zip(view.variants, bars(axes), strict=True):
        means = [100 * view.result.values(variant, one.name, "sdc1").mean() for one in view.result.conditions]
        np.testing.assert_allclose(widths, means)


def test_many_tensors_are_a_line_of_readable_size_with_the_worst_named() -> None:
    view = View(synthetic.per_tensor(160, trials=6))
    figure = maps.profile(view, view.tensors)
    assert max(figure.get_size_inches()) < 8
    (axes,) = figure.axes
    means = {one.name: view.result.values("plain", one.name, "sdc1").mean() for one in view.result.conditions}
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 100 * np.array(list(means.values())))
    worst = max(means, key=lambda name: means[name])
    named_in_legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert f"1: {worst} ({100 * means[worst]:.1f} %)" in named_in_legend
    blocks = {text.get_text() for text in axes.texts} & {"layer1", "layer2", "layer3", "layer4"}
    assert len(blocks) == 4
    assert "figure-tensors" in named(figures(view.result))


def test_bits_stand_as_a_word_is_written_with_its_parts_shaded() -> None:
    view = View(synthetic.per_bit())
    (axes,) = maps.bit_bars(view).axes
    assert [label.get_text() for label in axes.get_xticklabels()][:2] == ["31", "29"]
    assert {text.get_text() for text in axes.texts} == {"sign", "integer", "fraction"}
    heights = [bar.get_height() for bar in axes.containers[1] if hasattr(bar, "get_height")]
    means = [100 * view.result.values("plain", f"bit {bit}", "sdc1").mean() for bit in range(31, -1, -1)]
    np.testing.assert_allclose(heights, means)


def test_the_heat_map_has_tensors_down_and_bits_across_on_one_scale() -> None:
    view = View(synthetic.exhaustive())
    scales = []
    for variant in view.variants:
        axes, _ = maps.heat(view, variant).axes
        (image,) = axes.images
        values = np.asarray(image.get_array())
        means = [
            [100 * view.result.values(variant, f"{name} bit {bit}", "sdc1").mean() for bit in range(31, 15, -1)]
            for name in ("conv1.weight", "layer1.conv.weight", "fc.bias")
        ]
        np.testing.assert_allclose(values, means)
        scales.append(image.get_clim())
    assert scales[0] == scales[1]


def test_the_summary_is_hollow_where_nothing_was_seen() -> None:
    (axes,) = single_figure(View(synthetic.single(("plain",)))).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["SDC-1", "SDC-5", "DUE"]
    filled = [to_hex(line.get_markerfacecolor()) for line in axes.lines if line.get_marker() == "o"]
    assert len(filled) == 3
    faces = [line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"]
    assert [face == "none" for face in faces] == [False, False, True]


@pytest.mark.parametrize("make", [synthetic.rate_sweep, synthetic.exhaustive, synthetic.per_site])
def test_a_figure_is_svg_that_says_what_it_shows(make: object) -> None:
    for picture in figures(make()):  # type: ignore[operator]
        root = ET.fromstring(picture.svg)
        assert root.tag == f"{SVG}svg"
        assert root.get("role") == "img"
        assert root.get("aria-label") == picture.title == root.findtext(f"{SVG}title")
        assert root.findtext(f"{SVG}desc") == picture.description
        assert not re.search(r"<metadata|<!DOCTYPE|<\?xml", picture.svg)
        for element in root.iter():
            assert element.get("id", picture.name).startswith(picture.name)


def test_names_that_look_like_formulas_or_have_no_letters_here_are_drawn_as_they_are() -> None:
    variants = ("a$\\frac{x$ <b>", "日本", "fitact")
    (picture,) = figures(synthetic.rate_sweep(variants, trials=3))  # a glyph that is missing would be a warning
    assert "日本" in picture.description
    assert "<b>" not in picture.svg


def test_drawing_leaves_no_global_state_and_needs_no_pyplot() -> None:
    code = """
import sys
import matplotlib as mpl
settings = lambda: [mpl.rcParams[name] for name in ("svg.hashsalt", "svg.fonttype", "font.size")]
before = settings()
import synthetic_campaigns as synthetic
from fitact_fx.reports.campaigns.page import page
page(synthetic.exhaustive()), page(synthetic.rate_sweep(trials=3))
assert "matplotlib.pyplot" not in sys.modules
assert settings() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FitactError, match=r'not installed;\n  pip install "fitact-fx\[plot\]"'):
        figures(synthetic.rate_sweep(trials=2))
