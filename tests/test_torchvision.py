"""Networks people use: a quick choice of families here, all eighty in tools/torchvision_sweep.py."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

torchvision = pytest.importorskip("torchvision", reason="torchvision, which holds these networks, is not installed")

import fitact_fx  # noqa: E402
from fitact_fx.bounded import bounded_sites, exchanged  # noqa: E402
from fitact_fx.policies import Pass  # noqa: E402

TOOL = Path(__file__).parents[1] / "tools" / "torchvision_sweep.py"

QUICK = [
    "resnet18",
    "mobilenet_v3_small",
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "regnet_y_400mf",
    "efficientnet_b0",
    "convnext_tiny",
]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("torchvision_sweep", TOOL)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


pytestmark = pytest.mark.usefixtures("no_gradients")


def vision_transformer():
    """ViT with everything but its size."""
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10
    )
    torch.nn.init.normal_(network.heads.head.weight)  # its classifier starts at zero, where nothing could differ
    return network.eval()


def swin_transformer():
    """Swin with everything but its size."""
    torch.manual_seed(0)
    return torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=[4, 4], num_classes=10
    ).eval()


def assert_as_promised(tool, name, model, size):
    result = tool.sweep(name, model, size)
    assert result.exceptions == []
    assert result.as_promised
    assert result.bounds["neuron"] > result.bounds["channel"] > result.bounds["layer"] >= result.sites > 0
    assert result.replaced > 0, "the scaled weights pushed nothing beyond a bound, so nothing was shown"


@pytest.mark.parametrize("name", QUICK)
def test_a_convolutional_network_stays_itself_and_its_bounds_hold(tool, name):
    assert_as_promised(tool, name, tool.build(name), 32)


@pytest.mark.filterwarnings("ignore::fitact_fx.UnprotectedWarning")  # Swin's attention is one wrapped function
@pytest.mark.parametrize("build", [vision_transformer, swin_transformer])
def test_a_transformer_stays_itself_and_its_bounds_hold(tool, build):
    assert_as_promised(tool, build.__name__, build(), 32)


def test_the_check_itself_sees_a_bound_that_does_not_hold(tool):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    hard = fitact_fx.harden(vision_transformer())
    fitact_fx.calibrate(hard, [images])
    with exchanged(hard, Pass()):
        wrong, replaced = tool.beyond_bounds_when_scaled(hard, images)
    assert wrong[0].startswith("encoder.layers.encoder_layer_0.mlp.1: ")
    assert "values beyond the bound, e.g. " in wrong[0]
    assert replaced == 0


@pytest.mark.parametrize(
    "build",
    [
        lambda: torchvision.models.resnet18(num_classes=10).eval(),
        lambda: torchvision.models.mobilenet_v3_small(num_classes=10).eval(),
        vision_transformer,
    ],
    ids=["resnet18", "mobilenet_v3_small", "vit"],
)
def test_a_hardened_network_compiles_in_one_graph(build):
    torch.manual_seed(0)
    model = build()
    images = torch.randn(2, 3, 32, 32)
    hard = fitact_fx.harden(model, granularity="neuron")
    fitact_fx.calibrate(hard, [images])
    torch.compiler.reset()
    compiled = torch.compile(hard, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))
    assert len(bounded_sites(hard)) > 2


def test_resnet18_compiled_by_inductor_agrees_with_the_compiled_original():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    hard = fitact_fx.harden(model, granularity="neuron")
    fitact_fx.calibrate(hard, [images])
    torch.compiler.reset()
    with torch.no_grad():
        expected = torch.compile(model, fullgraph=True)(images)
        torch.testing.assert_close(torch.compile(hard, fullgraph=True)(images), expected)
        torch.testing.assert_close(fitact_fx.lower(hard, (images,))(images), expected)


def test_the_table_of_the_sweep_is_committed_and_names_every_model(tool):
    page = tool.RESULTS.read_text(encoding="utf-8")
    names = torchvision.models.list_models(module=torchvision.models)
    missing = [name for name in names if f" {name} |" not in page]
    # A newer torchvision may know networks that the committed table could not.
    assert missing == [] or torchvision.__version__.partition("+")[0] not in page
