"""Bounds on disk: what comes back is what was saved, and what does not fit is named."""

import json
import stat
import struct

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import fitact_fx
from fitact_fx import saving
from fitact_fx.bounded import bounded_sites
from fitact_fx.errors import RecipeError, SiteError
from fitact_fx.schemes.fitact import FitAct


class Net(nn.Module):
    def __init__(self, width=4, activation=nn.GELU, extra=False):
        super().__init__()
        self.conv = nn.Conv2d(2, width, 3)
        self.head = nn.Sequential(nn.Linear(width, 3), activation())
        self.extra = extra

    def forward(self, x):
        x = self.head(F.relu(self.conv(x)).mean((2, 3)))
        return F.relu(x) if self.extra else x


def net(**options):
    torch.manual_seed(0)
    return Net(**options).eval()


def images():
    return torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def calibrated(granularity=None, **scheme):
    hard = fitact_fx.harden(net(), granularity, scheme=FitAct(**scheme))
    fitact_fx.calibrate(hard, [images()])
    return hard


@pytest.fixture
def saved(tmp_path):
    fitact_fx.save(calibrated(), tmp_path / "net.fitact")
    return tmp_path / "net.fitact"


def parts(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["fitact_fx"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def rewrite(path, recipe, tensors):
    save_file(tensors, path, metadata={"fitact_fx": recipe if isinstance(recipe, str) else json.dumps(recipe)})


@pytest.mark.parametrize("granularity", ["neuron", "channel", "layer", {"*": "layer", "relu": "neuron"}], ids=str)
@pytest.mark.parametrize("policy", ["zero", "clamp"])
def test_a_loaded_model_is_the_saved_one_bit_for_bit(granularity, policy, tmp_path):
    hard = calibrated(granularity, policy=policy)
    fitact_fx.save(hard, tmp_path / "bounds")
    loaded = fitact_fx.load(tmp_path / "bounds", net())
    for name, pair in fitact_fx.bounds(hard).items():
        for mine, theirs in zip(pair, fitact_fx.bounds(loaded)[name], strict=True):
            assert (mine is None and theirs is None) or (mine.shape == theirs.shape and torch.equal(mine, theirs))
    assert [b.spec for b in bounded_sites(loaded).values()] == [b.spec for b in bounded_sites(hard).values()]
    assert [b.scale for b in bounded_sites(loaded).values()] == [b.scale for b in bounded_sites(hard).values()]
    loud = images() * 50
    with torch.no_grad():
        assert torch.equal(loaded(loud), hard(loud))
        assert not torch.equal(loaded(loud), net()(loud))


def test_bounds_set_by_hand_infinite_and_one_sided_ones_come_back(tmp_path):
    hard = calibrated()
    fitact_fx.set_bounds(hard, {"relu": (None, float("inf")), "head.1": (-0.5, None)})
    fitact_fx.save(hard, str(tmp_path / "bounds"))
    loaded = fitact_fx.bounds(fitact_fx.load(str(tmp_path / "bounds"), net()))
    assert loaded == {"relu": (None, torch.tensor(float("inf"))), "head.1": (torch.tensor(-0.5), None)}


def test_a_loaded_model_can_be_saved_and_loaded_again(saved, tmp_path):
    loaded = fitact_fx.load(saved, net())
    fitact_fx.save(loaded, tmp_path / "again")
    assert saved.read_bytes() == (tmp_path / "again").read_bytes()


def test_bounds_go_to_the_type_of_the_model_they_are_loaded_into(saved):
    loaded = fitact_fx.load(saved, net().bfloat16())
    assert {b.upper.dtype for b in bounded_sites(loaded).values()} == {torch.bfloat16}


def test_loading_leaves_the_users_model_alone(saved):
    model = net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = fitact_fx.load(saved, model)
    assert model.training
    assert loaded.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert loaded.get_parameter("conv.weight") is model.conv.weight


def test_the_file_holds_the_bounds_and_a_readable_recipe_and_no_weights(saved):
    recipe, tensors = parts(saved)
    assert set(tensors) == {"relu.upper", "head.1.lower", "head.1.upper"}
    assert recipe["version"] == 1
    assert recipe["scheme"]["name"] == "fitact"
    assert recipe["sites"][1] == {
        "name": "head.1",
        "kind": "gelu",
        "granularity": "neuron",
        "policy": "zero",
        "learned": True,
        "sides": ["lower", "upper"],
    }
    assert recipe["parameters"]["conv.weight"] == [4, 2, 3, 3]


def test_a_saved_file_has_the_permissions_of_any_new_file(saved, tmp_path):
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


# Saving goes wrong.


def test_saving_that_fails_keeps_the_old_file_and_leaves_no_part_behind(saved, monkeypatch):
    before, hard = saved.read_bytes(), calibrated("layer")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(saved), "replace", full)
    with pytest.raises(OSError, match="No space left"):
        fitact_fx.save(hard, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_recipe_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    hard = calibrated()
    monkeypatch.setattr(saving, "serialised", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitact_fx.save(hard, tmp_path / "bounds")
    assert list(tmp_path.iterdir()) == []


def test_unset_bounds_are_not_saved(tmp_path):
    with pytest.raises(SiteError, match=r"^the bounds of relu are not set;\n  run fitact_fx\.calibrate before saving$"):
        fitact_fx.save(fitact_fx.harden(net()), tmp_path / "bounds")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_hardened_is_not_saved(tmp_path):
    with pytest.raises(SiteError, match=r"this Net is not a hardened model;\n  save what fitact_fx\.harden returned"):
        fitact_fx.save(net(), tmp_path / "bounds")


def test_a_folder_that_is_missing_or_in_the_way_is_named(tmp_path):
    with pytest.raises(RecipeError) as raised:
        fitact_fx.save(calibrated(), tmp_path / "runs" / "bounds")
    assert str(raised.value) == f"there is no folder {tmp_path / 'runs'};\n  make it first"
    with pytest.raises(RecipeError) as raised:
        fitact_fx.save(calibrated(), tmp_path)
    assert str(raised.value) == f"{tmp_path} is a folder;\n  give the path of a file"


# Loading what does not fit.


@pytest.mark.parametrize(
    ("model", "lines"),
    [
        (net(activation=nn.SiLU), ["site head.1 is silu in the model and gelu in the file"]),
        (net(extra=True), ["site relu_1 is in the model and not in the file"]),
        (net(activation=nn.Identity), ["site head.1 is identity in the model and gelu in the file"]),
        (
            net(width=5),
            [
                "parameter conv.weight is [5, 2, 3, 3] in the model and [4, 2, 3, 3] in the file",
                "parameter conv.bias is [5] in the model and [4] in the file",
                "parameter head.0.weight is [3, 5] in the model and [3, 4] in the file",
            ],
        ),
    ],
    ids=["kind", "more sites", "fewer sites", "shapes"],
)
def test_a_model_that_does_not_fit_is_told_exactly_how(saved, model, lines):
    with pytest.raises(RecipeError) as raised:
        fitact_fx.load(saved, model)
    assert str(raised.value) == f"{saved} does not fit this model:\n  " + "\n  ".join(lines)


def test_many_differences_are_shown_five_at_a_time(saved):
    with pytest.raises(RecipeError) as raised:
        fitact_fx.load(saved, nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(2, 2), nn.ReLU()))))
    lines = str(raised.value).splitlines()
    assert len(lines) == 7
    assert lines[1:4] == [
        "  site relu is in the file and not in the model",
        "  site head.1 is in the file and not in the model",
        "  site 1 is in the model and not in the file",
    ]
    assert lines[-1] == "  and 1 more"


def test_sites_that_a_scheme_left_out_stay_unbounded_and_are_still_compared(tmp_path):
    class OnlyTheHead(FitAct):
        def place(self, sites, graph_module):
            return {name: spec for name, spec in super().place(sites, graph_module).items() if name == "head.1"}

    hard = fitact_fx.harden(net(), scheme=OnlyTheHead())
    fitact_fx.calibrate(hard, [images()])
    fitact_fx.save(hard, tmp_path / "bounds")
    assert list(fitact_fx.bounds(fitact_fx.load(tmp_path / "bounds", net()))) == ["head.1"]
    with pytest.raises(RecipeError, match="site relu_1 is in the model and not in the file"):
        fitact_fx.load(tmp_path / "bounds", net(extra=True))


def test_a_model_of_another_input_size_says_so_when_it_runs(saved):
    loaded = fitact_fx.load(saved, net())
    with pytest.raises(SiteError, match=r"calibrated for \(4, 4, 4\) and it now gets \(4, 6, 6\)"):
        loaded(torch.ones(1, 2, 8, 8))


# Loading what is no file of ours.


def refused(path, model=None):
    with pytest.raises(RecipeError) as raised:
        fitact_fx.load(path, model or net())
    return str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    assert refused(tmp_path / "no") == f"there is no file {tmp_path / 'no'};\n  pass the path that fitact_fx.save wrote"
    assert refused(tmp_path) == f"there is no file {tmp_path};\n  pass the path that fitact_fx.save wrote"


@pytest.mark.parametrize("kept", [0, 5, 100, -1, -20])
def test_a_truncated_file_is_no_safetensors_file(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    assert refused(saved).startswith(f"{saved} is no safetensors file or is damaged (")
    assert refused(saved).endswith(");\n  save it again")


def test_a_foreign_file_is_told_from_a_damaged_one(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "pickle")
    assert "pickle is no safetensors file or is damaged" in refused(tmp_path / "pickle")
    save_file({"a": torch.ones(2)}, tmp_path / "weights")
    assert refused(tmp_path / "weights") == (
        f"{tmp_path / 'weights'} was not written by fitact_fx.save: it holds no recipe"
    )


def test_a_newer_version_is_refused(saved):
    recipe, tensors = parts(saved)
    rewrite(saved, {**recipe, "version": 2}, tensors)
    assert refused(saved) == (
        f"{saved} has version 2, and this release reads version 1;\n  load it with the release that wrote it"
    )


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda recipe: recipe["sites"][0].update(granularity="voxel"), "unknown granularity 'voxel'; choose one of"),
        (
            lambda recipe: recipe["sites"][0].update(policy="smooth"),
            "unknown policy 'smooth'; choose one of average, backflip, clamp, rescale, zero",
        ),
        (lambda recipe: recipe["scheme"].update(name="fitakt"), "unknown scheme 'fitakt'; choose one of"),
        (lambda recipe: recipe["scheme"]["options"].update(speed=3), "speed"),
        (lambda recipe: recipe["sites"][0].pop("policy"), "no 'policy'"),
        (lambda recipe: recipe.pop("sites"), "no 'sites'"),
        (lambda recipe: recipe.pop("version"), "no 'version'"),
        (lambda recipe: recipe.update(sites=3), "not iterable"),
        (lambda recipe: recipe.update(parameters=None, scheme=None), "NoneType"),
    ],
)
def test_an_edited_recipe_says_what_cannot_be_read(saved, edit, text):
    recipe, tensors = parts(saved)
    edit(recipe)
    rewrite(saved, recipe, tensors)
    assert refused(saved).startswith(f"the recipe in {saved} cannot be read (")
    assert text in refused(saved)


@pytest.mark.parametrize("header", ["", "{", "[]", "3", "null"])
def test_a_header_that_is_no_recipe_is_refused(saved, header):
    rewrite(saved, header, parts(saved)[1])
    assert f"the recipe in {saved} cannot be read (" in refused(saved)


def test_bounds_that_are_missing_or_too_many_are_named(saved):
    recipe, tensors = parts(saved)
    rewrite(saved, recipe, {name: tensor for name, tensor in tensors.items() if name != "head.1.lower"})
    text = f"{saved} was changed after it was saved: the bound {{}};\n  save it again"
    assert refused(saved) == text.format("head.1.lower is missing")
    rewrite(saved, recipe, {**tensors, "relu.lower": torch.zeros(1)})
    assert refused(saved) == text.format("relu.lower is not in the recipe")


def test_a_bound_that_was_made_nan_is_refused_with_its_site(saved):
    recipe, tensors = parts(saved)
    tensors["relu.upper"][0, 1, 0, 0] = float("nan")
    rewrite(saved, recipe, tensors)
    with pytest.raises(SiteError, match=r"^site relu \(test_saving\.py:\d+, in forward: .*\n  a bound is NaN;"):
        fitact_fx.load(saved, net())


def test_a_header_length_that_lies_is_damage(saved):
    saved.write_bytes(struct.pack("<Q", 2**62) + saved.read_bytes()[8:])
    assert "is no safetensors file or is damaged" in refused(saved)
