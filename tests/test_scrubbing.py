"""Scrubbing puts guarded parameters right in place, and says what it repaired."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx import repairs
from fitact_fx.errors import SiteError


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).eval()


def planted(model):
    with torch.no_grad():
        model[0].weight[1, 0, 2, 2] = math.nan
        model[3].weight[4, 7] = -1e30
        model[3].bias[0] = math.inf


def outside(values, clean):
    """The indices outside each row's clean range, or the vector's, as NumPy sees it."""
    axes = tuple(range(1, clean.ndim)) if clean.ndim > 1 else None
    low, high = clean.min(axes, keepdims=True), clean.max(axes, keepdims=True)
    return [tuple(map(int, each)) for each in np.argwhere(~((values >= low) & (values <= high)))]


def test_what_is_outside_becomes_zero_in_the_users_own_model_and_nothing_else_changes():
    model = net()
    clean = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    guarded = fitact_fx.guard(model)
    model[3].weight.requires_grad_(False)
    model[0].bias.grad = torch.ones(4)
    planted(model)
    wrong = {name: outside(parameter.detach().numpy(), clean[name]) for name, parameter in model.named_parameters()}
    report = fitact_fx.scrub(guarded)
    assert [(row.tensor, row.index) for row in report.elements] == [(n, i) for n in wrong for i in wrong[n]]
    assert report
    assert len(report) == 3
    assert report.tensors == 4
    for name, parameter in model.named_parameters():
        expected = clean[name].copy()
        for index in wrong[name]:
            expected[index] = 0
        assert np.array_equal(parameter.detach().numpy().view(np.int32), expected.view(np.int32))
    assert not model[3].weight.requires_grad
    assert torch.equal(model[0].bias.grad, torch.ones(4))
    again = fitact_fx.scrub(guarded)
    assert not again
    assert str(again) == "4 parameters checked, nothing to repair"


def test_the_report_says_what_was_found_and_between_which_limits():
    model = net()
    low, high = (float(each) for each in model[3].weight[4].detach().aminmax())
    guarded = fitact_fx.guard(model)
    planted(model)
    report = fitact_fx.scrub(guarded)
    row = next(each for each in report.elements if each.tensor == "3.weight")
    assert (row.index, row.found, row.low, row.high) == ((4, 7), pytest.approx(-1e30), low, high)
    assert "0.weight[1, 0, 2, 2] was nan" in str(report)
    found = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert found["elements"][0]["found"] == "nan"
    assert found["tensors"] == 4


def test_a_copy_of_a_limit_that_is_outvoted_is_put_right():
    guarded = fitact_fx.guard(net())
    limits = guarded.get_submodule("limits.3.weight")
    before = limits.voted().clone()
    limits.copy1[1, 2] = math.nan
    limits.copy2[0, 4] = 7.0
    report = fitact_fx.scrub(guarded)
    assert not report.elements
    rows = {(row.tensor, row.copy, row.side, row.range) for row in report.limits}
    assert rows == {("3.weight", "copy1", "high", 2), ("3.weight", "copy2", "low", 4)}
    assert all(torch.equal(copy, before) for copy in limits.copies)


def test_a_tensor_that_is_broken_all_over_is_told_of_without_a_record_of_each_element(monkeypatch):
    model = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 30)).eval()
    guarded = fitact_fx.guard(model)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
        model[1].weight[:, ::2] = math.inf
    report = fitact_fx.scrub(guarded)
    every = [("0.weight", (row, column)) for row in range(50) for column in range(40)]
    every += [("1.weight", (row, column)) for row in range(30) for column in range(0, 50, 2)]
    assert [(row.tensor, row.index) for row in report.elements] == every
    for place in (0, 1999, 2000, 2749, -1, -750, -751):
        assert (report.elements[place].tensor, report.elements[place].index) == every[place]
    assert [row.index for row in report.elements[1998:2002]] == [index for _, index in every[1998:2002]]
    with pytest.raises(IndexError):
        report.elements[2750]
    made = []
    kind = repairs.RepairedElement
    monkeypatch.setattr(repairs, "RepairedElement", lambda *numbers: made.append(numbers) or kind(*numbers))
    assert len(report) == 2750
    told = str(report)
    assert "0.weight[0, 9] was nan" in told
    assert told.endswith("and 2740 more")
    assert len(made) == 10


def test_reports_are_equal_that_tell_of_the_same_words():
    model, words = net(), torch.tensor([0x7FC00001, 0x7FC00002], dtype=torch.int32)
    guarded = fitact_fx.guard(model)

    def found(planted, at=7):
        with torch.no_grad():
            model[3].weight[4, at] = planted
        return fitact_fx.scrub(guarded)

    clean = fitact_fx.scrub(guarded)
    assert clean == fitact_fx.scrub(guarded)
    nan, other_nan = words.view(torch.float32)
    same = [found(nan), found(nan)]
    assert same[0] == same[1]  # although NaN equals nothing
    assert hash(same[0]) == hash(same[1])
    assert same[0].elements[0] != same[1].elements[0]
    others = [clean, found(other_nan), found(nan, at=8), found(9.0)]
    assert all(same[0] != each for each in others)
    assert same[0].elements != "these"


def test_reports_show_what_they_hold():
    model = net()
    guarded = fitact_fx.guard(model)
    assert repr(fitact_fx.scrub(guarded)) == "Scrubbed(elements=RepairedElements(), limits=(), tensors=4)"
    with torch.no_grad():
        model[3].weight[:, :3] = math.nan
    shown = repr(fitact_fx.scrub(guarded).elements)
    assert shown.startswith("RepairedElements(RepairedElement(tensor='3.weight', index=(0, 0), found=nan, low=")
    assert shown.count("RepairedElement(") == 10
    assert shown.endswith(", and 5 more)")


def test_a_scrubbed_model_gives_what_its_guard_gave():
    model, x = net(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    guarded = fitact_fx.harden(model, "layer", "ranger", [x], guard="parameters")
    planted(model)
    with torch.no_grad():
        expected = guarded(x)
        fitact_fx.scrub(nn.Sequential(guarded))
        assert torch.equal(guarded(x), expected)
        assert model(x).isfinite().all()


def test_inference_tensors_can_be_scrubbed():
    with torch.inference_mode():
        model = net()
        guarded = fitact_fx.guard(model)
        model[0].weight[0, 0, 0, 0] = math.nan
    assert len(fitact_fx.scrub(guarded)) == 1


def test_a_model_without_guard_is_refused():
    with pytest.raises(SiteError, match="this Sequential has no guard"):
        fitact_fx.scrub(net())
    with pytest.raises(SiteError, match=r"an nn\.Module; got a OrderedDict"):
        fitact_fx.scrub(net().state_dict())


def test_a_lowered_model_is_scrubbed_through_what_it_was_made_of():
    model, x = net(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    guarded = fitact_fx.guard(model)
    torch.compiler.reset()
    fast = fitact_fx.lower(guarded, x, backend="eager")
    planted(model)
    with torch.no_grad():
        expected = fast(x)
        with pytest.raises(SiteError, match="a lowered model shares the parameters of what it was made of"):
            fitact_fx.scrub(fast)
        assert len(fitact_fx.scrub(guarded)) == 3
        assert torch.equal(fast(x), expected)
        assert torch.allclose(model(x), expected, atol=1e-6)
