"""Where the channel is: known and right, or not known and said so; never a wrong guess."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import module
from torch import Tensor, nn

from fitact_fx.errors import SiteError
from fitact_fx.hardening import bounds, calibrate, harden
from fitact_fx.layout import channel_layouts
from fitact_fx.tracing import trace

IMAGES = torch.randn(3, 2, 6, 5)
ROWS = torch.randn(5, 7, 4)


def channel_bounds(model: nn.Module, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The upper bounds of the site `act`, and the values that the model's own `act` gives."""
    values: list[Tensor] = []
    handle = model.act.register_forward_hook(lambda module, args, output: values.append(output))
    batches = [x[:2], x[2:]]  # the same for both: other batches round differently
    with torch.no_grad():
        for batch in batches:
            model.eval()(batch)
    handle.remove()
    hard = harden(model.eval(), "channel")
    calibrate(hard, batches)
    return bounds(hard)["act"][1].numpy(), torch.cat(values).numpy()


conv = {"conv": nn.Conv2d(2, 4, 3, padding=1)}
linear = {"linear": nn.Linear(4, 6)}

# The forward up to the activation, its parts, and the dimension that holds the channels, worked out by hand.
KNOWN: dict[str, tuple[Callable[..., Tensor], dict[str, Any], Tensor, int]] = {
    "conv": (lambda self, x: self.conv(x), conv, IMAGES, 1),
    "conv, norm": (lambda self, x: self.norm(self.conv(x)), conv | {"norm": nn.BatchNorm2d(4)}, IMAGES, 1),
    "conv1d": (lambda self, x: self.conv(x), {"conv": nn.Conv1d(7, 3, 1)}, ROWS, 1),
    "functional conv": (lambda self, x: F.conv2d(x, self.w), {"w": nn.Parameter(torch.randn(4, 2, 1, 1))}, IMAGES, 1),
    "transposed conv": (lambda self, x: self.conv(x), {"conv": nn.ConvTranspose2d(2, 3, 2)}, IMAGES, 1),
    "norm of one dimension": (lambda self, x: self.norm(x), {"norm": nn.BatchNorm1d(7)}, ROWS, 1),
    "group norm": (lambda self, x: self.norm(self.conv(x)), conv | {"norm": nn.GroupNorm(2, 4)}, IMAGES, 1),
    "linear": (lambda self, x: self.linear(x), linear, ROWS, 2),
    "functional linear": (lambda self, x: F.linear(x, self.w), {"w": nn.Parameter(torch.randn(6, 4))}, ROWS, 2),
    "layer norm": (lambda self, x: self.norm(x), {"norm": nn.LayerNorm(4)}, ROWS, 2),
    "embedding": (
        lambda self, x: self.table((x[..., 0] > 0).long()),
        {"table": nn.Embedding(2, 6)},
        ROWS,
        2,
    ),
    "residual": (lambda self, x: self.conv(x) + F.relu(self.conv(x)) * 0.5, conv, IMAGES, 1),
    "in place": (lambda self, x: self.conv(x).mul_(2).add_(1), conv, IMAGES, 1),
    "pooled": (lambda self, x: F.max_pool2d(F.avg_pool2d(self.conv(x), 2), 2), conv, IMAGES, 1),
    "squeeze and excite": (
        lambda self, x: self.conv(x) * F.adaptive_avg_pool2d(self.conv(x), 1).sigmoid(),
        conv,
        IMAGES,
        1,
    ),
    "permuted to last": (lambda self, x: self.conv(x).permute(0, 2, 3, 1), conv, IMAGES, 3),
    "permuted there and back": (lambda self, x: self.conv(x).permute(0, 2, 3, 1).permute(0, -1, 1, 2), conv, IMAGES, 1),
    "moved to last": (lambda self, x: self.conv(x).movedim(1, -1), conv, IMAGES, 3),
    "several moved": (lambda self, x: torch.moveaxis(self.conv(x), (2, 1), (1, 3)), conv, IMAGES, 3),
    "matrix transposed": (lambda self, x: self.linear(x).mT, linear, ROWS, 1),
    "matrix transposed behind a conv": (lambda self, x: self.conv(x).flatten(2).mT, conv, IMAGES, 2),
    "a new dimension": (lambda self, x: self.conv(x)[:, None], conv, IMAGES, 2),
    "a new last dimension": (lambda self, x: self.conv(x)[..., None], conv, IMAGES, 1),
    "a row of places": (lambda self, x: self.conv(x)[:, :, 0], conv, IMAGES, 1),
    "a column of places": (lambda self, x: self.conv(x).permute(0, 2, 3, 1)[:, 0, 1:], conv, IMAGES, 2),
    "transposed": (lambda self, x: self.conv(x).transpose(1, -1), conv, IMAGES, 3),
    "tokens": (lambda self, x: self.conv(x).flatten(2).transpose(1, 2), conv, IMAGES, 2),
    "tokens by reshape": (lambda self, x: (y := self.conv(x)).reshape(y.shape[0], 4, -1), conv, IMAGES, 1),
    "convnext": (
        lambda self, x: self.linear(self.norm(self.conv(x).permute(0, 2, 3, 1))),
        conv | linear | {"norm": nn.LayerNorm(4)},
        IMAGES,
        3,
    ),
    "norm over all but the batch": (
        lambda self, x: self.norm(self.conv(x)),
        conv | {"norm": nn.LayerNorm([4, 6, 5])},
        IMAGES,
        1,
    ),
    "flattened": (lambda self, x: torch.flatten(self.conv(x), 1), conv, IMAGES, 1),
    "mean of places": (lambda self, x: self.conv(x).mean((2, 3)), conv, IMAGES, 1),
    "mean, kept": (lambda self, x: self.conv(x).mean([-1, -2], keepdim=True), conv, IMAGES, 1),
    "mean before the channel": (lambda self, x: self.conv(x).permute(0, 2, 3, 1).mean(1), conv, IMAGES, 2),
    "cat": (lambda self, x: torch.cat([self.conv(x), self.conv(x)], 1), conv, IMAGES, 1),
    "cat along places": (lambda self, x: torch.cat([self.conv(x), self.conv(x)], 3), conv, IMAGES, 1),
    "chunk": (lambda self, x: self.conv(x).chunk(2, 1)[1], conv, IMAGES, 1),
    "gate": (lambda self, x: (y := self.linear(x).chunk(2, -1))[0] * y[1], linear, ROWS, 2),
    "slices": (lambda self, x: self.conv(x)[:, :3, 1:], conv, IMAGES, 1),
    "heads": (lambda self, x: self.linear(x).view(-1, 7, 1, 6), linear, ROWS, 3),
    "attention": (
        lambda self, x: self.attention(x, x, x)[0],
        {"attention": nn.MultiheadAttention(4, 2, batch_first=True)},
        ROWS,
        2,
    ),
    "position table": (
        lambda self, x: self.linear(x) + self.table,
        linear | {"table": nn.Parameter(torch.randn(1, 7, 6))},
        ROWS,
        2,
    ),
    "squeezed where nothing is to squeeze": (
        lambda self, x: self.conv(x).permute(0, 2, 3, 1).squeeze(1),
        conv,
        IMAGES,
        3,
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_channel_bounds_are_the_extremes_along_the_channel(name: str) -> None:
    forward, parts, x, dim = KNOWN[name]
    model = module(lambda self, x: self.act(forward(self, x)), act=nn.ReLU(), **parts)
    upper, values = channel_bounds(model, x)
    others = tuple(each for each in range(values.ndim) if each != dim)
    np.testing.assert_array_equal(upper, values.max(others, keepdims=True))


class Odd(nn.Module):
    """Attention whose weights between places go through an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[1]


def pad(x: Tensor, *amounts: int) -> Tensor:
    """Has the name of an operator of torch and moves the channel."""
    return x.permute(0, 2, 3, 1)


torch.fx.wrap("pad")

UNKNOWN: dict[str, tuple[Callable[..., Tensor], dict[str, Any], Tensor]] = {
    "the input": (lambda self, x: x, {}, IMAGES),
    "one element": (lambda self, x: self.conv(x)[:, 0], conv, IMAGES),
    "mean over the channel": (lambda self, x: self.conv(x).mean(1), conv, IMAGES),
    "mean over a dimension that is not known to be another": (
        lambda self, x: self.linear(x).mean(1),
        linear,
        IMAGES[:, :, :, :4],
    ),
    "channel shuffled into places": (lambda self, x: self.conv(x).view(-1, 2, 2, 30), conv, IMAGES),
    "reshaped to another batch": (
        lambda self, x: self.conv(x).reshape(-1, 4, 5, 6).flip(0).view(3, 2, 2, 30),
        conv,
        IMAGES,
    ),
    "weights between places": (lambda self, x: self.odd(x), {"odd": Odd()}, ROWS),
    "norm over length": (
        lambda self, x: self.norm(self.conv(x)),
        {"conv": nn.Conv1d(7, 3, 1), "norm": nn.LayerNorm(4)},
        ROWS,
    ),
    "broadcast in front": (
        lambda self, x: self.norm(x[:, 0]) + self.table,
        {"norm": nn.BatchNorm1d(4), "table": nn.Parameter(torch.randn(7, 1, 4))},
        ROWS,
    ),
    "two that disagree": (
        lambda self, x: (y := self.conv(x)) + self.linear(y),
        {"conv": nn.Conv1d(7, 4, 1), "linear": nn.Linear(4, 4)},
        ROWS,
    ),
    "a function of the user's": (lambda self, x: pad(self.conv(x), 1), conv, IMAGES),
    "stacked": (lambda self, x: torch.stack([self.conv(x), self.conv(x)], 1), conv, IMAGES),
    "multiplied": (lambda self, x: (y := self.conv(x)) @ y.mT, conv, IMAGES),
    "a last dimension of one that was broadcast": (
        lambda self, x: (self.one(x) * self.w).view(-1, 6, 7, 1),
        {"one": nn.Linear(4, 1), "w": nn.Parameter(torch.randn(6))},
        ROWS,
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_where_it_cannot_be_told_the_error_names_the_site(name: str) -> None:
    forward, parts, x = UNKNOWN[name]
    hard = harden(module(lambda self, x: self.act(forward(self, x)), act=nn.ReLU(), **parts), "channel")
    with pytest.raises(SiteError) as refused:
        calibrate(hard, [x])
    assert str(refused.value).startswith("site act (test_layout.py:")
    assert "where its channels lie could not be told from the graph" in str(refused.value)
    assert 'harden with granularity="neuron" or "layer" here' in str(refused.value)


def test_an_input_without_its_batch_is_refused_and_not_bounded_along_another_dimension() -> None:
    hard = harden(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()), "channel")
    with pytest.raises(SiteError, match="activation of rank 3, channel known for rank 4"):
        calibrate(hard, [(IMAGES[0],)])


class TestNetworks:
    """Every site of a whole network, against its own activations."""

    @pytest.mark.parametrize(
        ("name", "size", "unlike"),
        [
            ("resnet18", 32, {}),
            ("mobilenet_v3_small", 32, {}),
            ("convnext_tiny", 32, {"features": 3}),
            ("swin_t", 32, {"features": 3}),
            ("vit_b_32", 32, {"encoder": 2}),
        ],
    )
    def test_torchvisions_networks(self, name: str, size: int, unlike: dict[str, int]) -> None:
        models = pytest.importorskip("torchvision.models")
        options = {"image_size": 32} if name == "vit_b_32" else {}
        graph_module = trace(models.get_model(name, weights=None, **options).eval())
        values = Values(graph_module)
        with torch.no_grad():
            values.run(torch.randn(2, 3, size, size))
        for site, dim, value in values.of_sites():
            expected = next((place for path, place in unlike.items() if site.startswith(path)), 1)
            assert dim % value.ndim == (1 if value.ndim == 2 else expected), site


class Values(torch.fx.Interpreter):
    """Runs a graph and keeps what every node gives."""

    def __init__(self, graph_module: torch.fx.GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)

    def of_sites(self) -> Any:
        from fitact_fx.sites import find_sites

        layouts = channel_layouts(self.module)
        return [(site.name, layouts[site.node].dim, self.env[site.node]) for site in find_sites(self.module)]


# Each takes a value whose elements are the number of their channel, and gives one again.
MOVES: dict[str, Callable[[Any, Tensor, random.Random], Tensor]] = {
    "permute": lambda m, v, r: v.permute(r.sample(range(v.ndim), v.ndim)),
    "permute from the end": lambda m, v, r: v.permute([each - v.ndim for each in r.sample(range(v.ndim), v.ndim)]),
    "movedim": lambda m, v, r: v.movedim(r.randrange(v.ndim), r.randrange(-v.ndim, 0)),
    "moveaxis": lambda m, v, r: v.moveaxis(r.sample(range(v.ndim), 2), r.sample(range(v.ndim), 2)),
    "mT": lambda m, v, r: v.mT,
    "indexed": lambda m, v, r: v[tuple(r.choice([slice(None), None, 0, ...]) for _ in range(r.randint(2, 4)))],
    "transpose": lambda m, v, r: v.transpose(r.randrange(v.ndim), r.randrange(-v.ndim, 0)),
    "flatten": lambda m, v, r: v.flatten(r.randrange(v.ndim)),
    "flatten some": lambda m, v, r: v.flatten(1, 2),
    "unsqueeze": lambda m, v, r: v.unsqueeze(r.randrange(-v.ndim - 1, v.ndim + 1)),
    "squeeze": lambda m, v, r: v.squeeze(r.randrange(-v.ndim, v.ndim)),
    "view": lambda m, v, r: v.view(
        *r.choice([(-1, 4, 2), (2, -1, 4), (2, 4, -1, 2), (4, 2, 4), (-1, 4), (2, 2, 2, -1)])
    ),
    "reshape": lambda m, v, r: v.reshape(v.size(0), v.shape[1], *r.choice([(-1,), (2, -1), (-1, 2)])),
    "mean": lambda m, v, r: v.mean(r.randrange(-v.ndim, v.ndim), keepdim=r.random() < 0.4),
    "amax": lambda m, v, r: v.amax((0, r.randrange(1, v.ndim)), keepdim=r.random() < 0.4),
    "chunk": lambda m, v, r: v.chunk(2, r.randrange(v.ndim))[0],
    "slice": lambda m, v, r: v[:, : r.randrange(1, 4)],
    "item": lambda m, v, r: v[r.choice([0, (slice(None), 0), (..., 0), None])],
    "cat": lambda m, v, r: torch.cat([v, v], r.randrange(v.ndim)),
    "add": lambda m, v, r: v + v,
    "weight": lambda m, v, r: v + r.choice([m.w1, m.w2, m.w3, m.w4]),
    "pool": lambda m, v, r: F.max_pool1d(v, 1) if v.ndim == 3 else F.max_pool2d(v, 1),
    "relu": lambda m, v, r: F.relu(v),
    "linear": lambda m, v, r: m.linear(v),
    "conv": lambda m, v, r: m.conv(v if v.ndim == 4 else v.unflatten(5, (1,))),  # never without a batch
    "norm": lambda m, v, r: m.norm(v),
}


class Labelled(nn.Module):
    """Its layers give every element the number of its channel, so the channel is where the values differ."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.linear, self.conv = nn.Linear(4, 4), nn.Conv2d(2, 4, 1)
        self.norm = nn.BatchNorm1d(4, affine=True, track_running_stats=True).eval()
        for layer in (self.linear, self.conv, self.norm):
            nn.init.zeros_(layer.weight)
            layer.bias.data = torch.arange(1.0, 5.0)
        for rank in range(1, 5):
            setattr(self, f"w{rank}", nn.Parameter(torch.zeros((1, 2, 1, 4)[4 - rank :])))
        self.choices: list[tuple[str, int]] = []
        choice = random.Random(seed)
        value = self.start(torch.zeros(2, 2, 4, 2), torch.zeros(2, 2, 4))
        for _ in range(choice.randint(1, 7)):
            step = (choice.choice(list(MOVES)), choice.randrange(10**6))
            try:
                with torch.no_grad():
                    moved = MOVES[step[0]](self, value, FixedShape(step[1]))
            except (RuntimeError, IndexError, ValueError):
                continue
            if moved.ndim > 1:
                value = moved
                self.choices.append(step)

    def start(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(x) if self.seed % 2 else self.linear(y)


FixedShape = random.Random


def labelled_steps(seed: int) -> tuple[list[Tensor], list[Any]]:
    """The values of a random chain of operators, and where the graph says that the channel is."""
    model = Labelled(seed).eval()
    x, y = torch.zeros(2, 2, 4, 2), torch.zeros(2, 2, 4)
    ranks = [model.start(x, y).ndim]
    values = [model.start(x, y)]
    for name, number in model.choices:
        values.append(MOVES[name](model, values[-1], random.Random(number)))
        ranks.append(values[-1].ndim)

    def forward(self: Labelled, x: Tensor, y: Tensor) -> list[Tensor]:
        out = [self.start(x, y)]
        for (name, number), rank in zip(self.choices, ranks, strict=False):
            out.append(MOVES[name](self, Ranked(out[-1], rank), random.Random(number)))
        return out

    model.__class__ = type("Chain", (Labelled,), {"forward": forward})
    graph_module = trace(model)
    layouts = channel_layouts(graph_module)
    (output,) = (node for node in graph_module.graph.nodes if node.op == "output")
    return values, [layouts[node] for node in output.args[0]]


def Ranked(value: Any, rank: int) -> Any:  # noqa: N802  stands where a class could
    """The stand-in with its rank as a number, for choices that depend on it."""
    object.__setattr__(value, "__dict__", {**value.__dict__, "ndim": rank})
    return value


@pytest.mark.parametrize("seed", [*range(150), 1321, 2219])  # the last two lead the channel to dimension 0
def test_no_chain_of_operators_leads_to_a_wrong_guess(seed: int) -> None:
    values, layouts = labelled_steps(seed)
    for value, layout in zip(values, layouts, strict=True):
        if layout is None or value.ndim < 3:
            continue
        assert layout.rank in (None, value.ndim)
        dim = layout.dim % value.ndim
        assert layout.size in (None, value.shape[dim])
        differs = {each for each in range(value.ndim) if (value != value.narrow(each, 0, 1)).any()}
        assert differs <= {dim}, (Labelled(seed).choices, layout, tuple(value.shape))
