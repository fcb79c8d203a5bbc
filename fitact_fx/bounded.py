"""The one module inserted behind an activation.

Its whole state is two buffers, `lower` and `upper`, or the words of `fitact_fx.codes` in their place, which
`lower` and `upper` then read. A side that is None is free, and a module with both None is *unset*: the identity,
bit for bit. Which rule applies beyond the bounds is a policy,
a value that calibration and learning exchange for a while and always put back.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fitact_fx import codes
from fitact_fx.errors import RecipeError, SiteError, UncalibratedWarning, site_message
from fitact_fx.nodes import called_module
from fitact_fx.policies import Bounds, FeatureMaps, Pass, Policy, scale_of
from fitact_fx.source import is_torch
from fitact_fx.spec import Spec
from fitact_fx.traced import nodes_in_call_order

SIDES = ("lower", "upper")
_PLAIN = "bounds compare dense tensors of real numbers; leave this site out (sites=lambda site: site.name != ...)"


class Notice:
    """Says once per model that it is not calibrated; all sites of a model share one."""

    def __init__(self) -> None:
        self.given = False

    def give(self) -> None:
        """Warn, the first time."""
        if not self.given:
            self.given = True
            message = "this hardened model protects nothing yet: run fitact_fx.calibrate or set_bounds on it first"
            warnings.warn(message, UncalibratedWarning, stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """How far up, from where `warn` is called, the code stands that ran the model: beyond torch and this file."""
    level, frame = 1, inspect.currentframe()
    frame = frame.f_back if frame else None
    while frame is not None and (is_torch(frame.f_code.co_filename) or frame.f_code.co_filename == __file__):
        level, frame = level + 1, frame.f_back
    return level


class Bounded(nn.Module):
    """Bounds one site. Shapes: any activation (N, ...) -> the same; bounds as the granularity says.

    Unset, it returns its input. Infinite bounds return it with NaN replaced by 0. Under finite
    bounds no NaN and no infinity passes: what lies beyond becomes the policy's replacement.
    """

    placement: Tensor
    stored = codes.FULL
    """How the bounds lie in memory, and will after calibration: one of `codes.FORMATS`."""

    def __init__(
        self, site: str, kind: str, source: str, spec: Spec, minimum: float, like: Tensor, notice: Notice
    ) -> None:
        super().__init__()
        self.site = site
        self.kind = kind
        self.source = source
        self.spec = spec
        self.minimum = minimum
        self.notice = notice
        self.policy: Policy = spec.policy
        self.scale = 0.0
        self.register_buffer("lower", None)
        self.register_buffer("upper", None)
        # Holds no value: `.to(device | dtype)` moves it along, so that bounds set later know where to go.
        self.register_buffer("placement", like.new_empty(0), persistent=False)

    @property
    def is_set(self) -> bool:
        """Whether there is a bound on either side."""
        return self._held("lower") is not None or self._held("upper") is not None

    @property
    def lower(self) -> Tensor | None:
        """The least values, of the shape that the granularity gives them; None if free. Not the buffer if packed."""
        return self._read("lower")

    @property
    def upper(self) -> Tensor | None:
        """The greatest values."""
        return self._read("upper")

    def _held(self, side: str) -> Tensor | None:
        """The tensor of that side's numbers: bounds, or words that stand for them."""
        if side not in self._buffers:
            raise AttributeError(side)  # which is how a buffer that is not there yet is asked for
        if self.stored == codes.FULL or self._buffers[side] is not None:
            return self._buffers[side]
        return next((found for name in codes.word_names(side) if (found := self._buffers.get(name)) is not None), None)

    def _read(self, side: str) -> Tensor | None:
        held = self._held(side)
        if held is None or self._buffers[side] is not None:
            return held
        bound = codes.bound_in(self._buffers, side)
        # No half type: what was rounded outwards would be rounded back.
        return None if bound is None else bound.to(torch.promote_types(self.placement.dtype, torch.float32))

    @property
    def memory(self) -> dict[str, Tensor]:
        """Buffer name -> what is really stored of the bounds."""
        names = (name for side in SIDES for name in (side, *codes.buffer_names(side)))
        return {name: held for name in names if (held := self._buffers.get(name)) is not None}

    def hold(self, memory: Mapping[str, Tensor], stored: str) -> None:
        """Take these very tensors in the place of what is there, as `memory` gives them for that format."""
        if stored != self.stored:
            self.stored = stored
        for side in SIDES:
            self._buffers[side] = None
            for name in codes.buffer_names(side):
                self._buffers.pop(name, None)
        self._buffers.update(memory)
        self.rescale()

    def take(self, memory: Mapping[str, Tensor]) -> None:
        """Take copies of words, as `memory` gives them. RecipeError for others, SiteError as `checked` says it."""
        codes.require_words(memory)
        own = {name: held.to(self.placement.device, copy=True) for name, held in memory.items()}
        self.checked(*(codes.bound_in(own, side) for side in SIDES))
        self.hold(own, codes.stored_as(next(iter(own))))

    def store(self, stored: str) -> None:
        """Keep the bounds in that one of `codes.FORMATS`, rounded outwards, now and whenever they are set."""
        self._put(stored, self.lower, self.upper)

    @torch.inference_mode(mode=False)  # whose tensors could not be learned nor loaded into later
    def _put(self, stored: str, *bounds: Tensor | None) -> None:
        memory: dict[str, Tensor] = {}
        for side, bound in zip(SIDES, bounds, strict=True):
            placed = self._placed(bound)
            if placed is not None and bound is not None:
                memory |= {side: placed} if stored == codes.FULL else codes.encoded(bound, side, stored)
        self.hold(memory, stored)

    def forward(self, values: Any) -> Any:
        observed = isinstance(self.policy, Pass)
        if observed or self.is_set:
            self._refuse_other_things(values)
        # `index.clamp(min=0)` is no activation, whatever it looks like.
        if observed or not isinstance(values, Tensor) or not values.is_floating_point():
            return values
        if not self.is_set:
            if torch.compiler.is_exporting():
                raise self._error("its bounds are not set", "run fitact_fx.calibrate or set_bounds before exporting")
            if not torch.compiler.is_compiling():
                self.notice.give()
            return values
        self._check_shape(values)
        return self.policy(values, self.bounds)

    @property
    def bounds(self) -> Bounds:
        """The bounds as the policies take them."""
        return Bounds(self.lower, self.upper, self.minimum, self.scale)

    def set_bounds(self, lower: Tensor | float | None, upper: Tensor | float | None) -> None:
        """Set both sides; a number bounds the whole site. SiteError for what `checked` refuses."""
        self._put(self.stored, *self.checked(lower, upper))

    def rescale(self) -> None:
        """Take the scale of the bounds as they are now, and store again what was put in the place of words."""
        if self.stored != codes.FULL and any(self._buffers[side] is not None for side in SIDES):
            self.store(self.stored)
        self.scale = scale_of(self.lower, self.upper)

    def checked(
        self, lower: Tensor | float | None, upper: Tensor | float | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Copies of these bounds in the site's type and on its device; nothing is set.

        SiteError for NaN, for a lower bound above its upper one, and for an infinity that lets nothing pass.
        """
        low, high = self._placed(lower), self._placed(upper)
        if any(bound is not None and bound.isnan().any() for bound in (low, high)):
            raise self._error("a bound is NaN", "give a number, or infinity where the site should be free")
        if (low is not None and (low == torch.inf).any()) or (high is not None and (high == -torch.inf).any()):
            raise self._error("a bound lets nothing pass", "where a side should be free, give (-inf, inf)")
        if low is not None and high is not None and (low > high).any():
            raise self._error("a lower bound lies above its upper bound", "give them as (lower, upper)")
        return low, high

    def refuse_other_shape(self, *bounds: Tensor | None) -> None:
        """SiteError for a bound of another shape than the one that is set; one number fits any site."""
        held = (self._held(side) for side in SIDES)
        shapes = {tuple(bound.shape) for bound in held if bound is not None and bound.ndim}
        for bound in bounds:
            if shapes and bound is not None and bound.ndim and tuple(bound.shape) not in shapes:
                problem = f"its bounds have shape {min(shapes)} and the new one has {tuple(bound.shape)}"
                raise self._error(problem, "give a number, or a tensor of that shape")

    def _placed(self, bound: Tensor | float | None) -> Tensor | None:
        if bound is None:
            return None
        given = bound.detach() if isinstance(bound, Tensor) else torch.as_tensor(bound, dtype=torch.float64)
        placed = given.to(self.placement, copy=True)
        # A finite bound that a narrower type cannot hold must not turn into "no bound".
        overflowed = placed.isinf() & ~given.isinf().to(placed.device)
        largest = torch.finfo(placed.dtype).max
        return torch.where(overflowed, placed.clamp(-largest, largest), placed)

    def bound_shape(self, values: Tensor) -> tuple[int, ...]:
        """The shape of this site's bounds for such activations; SiteError if the channel is not known."""
        try:
            return self.spec.granularity.bound_shape(tuple(values.shape))
        except RecipeError as error:
            remedy = 'harden with granularity="neuron" or "layer" here'
            raise self._error(f"where its channels lie could not be told from the graph ({error})", remedy) from error

    def shape_error(self, bound: Tensor, values: Tensor) -> SiteError:
        """The bounds belong to activations of another shape."""
        kind, shape = self.spec.granularity.name, tuple(values.shape)
        if kind == "neuron" and bound.ndim == values.ndim:
            problem = f"its neuron bounds were calibrated for {tuple(bound.shape[1:])} and it now gets {shape[1:]}"
            remedy = 'calibrate again at this input size, or harden with granularity="channel"'
            return self._error(problem, remedy)
        problem = f"its {kind} bounds have shape {tuple(bound.shape)}"
        problem += f", and activations of shape {shape} need {self.bound_shape(values)}"
        return self._error(problem, "calibrate again with such inputs, or set bounds of that shape")

    def _check_shape(self, values: Tensor) -> None:
        refusal = self.policy.refusal(values.ndim) if isinstance(self.policy, FeatureMaps) else None
        if refusal is not None:
            raise self._error(f"where its feature maps lie is not known ({refusal})", 'harden with policy="zero" here')
        for bound in (self._held("lower"), self._held("upper")):
            # A bound without dimensions is one number for the whole site, whatever its granularity.
            if bound is not None and bound.ndim > 0 and tuple(bound.shape) != self.bound_shape(values):
                raise self.shape_error(bound, values)

    def _refuse_other_things(self, values: object) -> None:
        if not isinstance(values, Tensor):
            problem = f"its value is a {type(values).__name__} and not a tensor"
            raise self._error(problem, "choose sites whose value is one tensor")
        if values.is_quantized or values.is_complex() or values.layout != torch.strided:
            what = "quantized" if values.is_quantized else "complex" if values.is_complex() else str(values.layout)
            raise self._error(f"its value is a {what.removeprefix('torch.')} tensor", _PLAIN)

    def _error(self, problem: str, remedy: str) -> SiteError:
        return SiteError(site_message(self.site, self.source, problem, remedy))

    def _apply(self, fn: Any, recurse: bool = True) -> "Bounded":
        """Move or cast; words stay words, and a bound that overflows a narrower type stays finite, see `_placed`."""
        before = self.memory
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, held in before.items():
            now = self._buffers[name]
            if now is not None and now.dtype != held.dtype:
                self._buffers[name] = self._placed(held) if name in SIDES else held.to(now.device)
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:  # the bounds of an unset site take the shape they were saved with, and those of any site the format
        for side in SIDES:
            names = (side, *codes.buffer_names(side))
            self._make_room(
                {name: saved for name in names if isinstance(saved := state_dict.get(prefix + name), Tensor)}, names
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for side in SIDES:
            saved, bound = state_dict.get(prefix + side), self._buffers[side]
            if not isinstance(saved, Tensor) or bound is None:
                continue
            if bound.dtype != saved.dtype and bound.shape == saved.shape:
                self._buffers[side] = self._placed(saved)
        self.rescale()

    def _make_room(self, saved: Mapping[str, Tensor], names: tuple[str, ...]) -> None:
        """Buffers for what is to be loaded of one side, unless it is stored so already."""
        if not saved or saved.keys() == {name for name in names if self._buffers.get(name) is not None}:
            return
        self.hold({name: held for name, held in self.memory.items() if name not in names}, self.stored)
        for name, tensor in saved.items():
            dtype = self.placement.dtype if name in SIDES else tensor.dtype
            self._buffers[name] = torch.empty_like(tensor, dtype=dtype, device=self.placement.device)
        self.stored = codes.stored_as(next(iter(saved)))

    def extra_repr(self) -> str:
        state = ", ".join(f"{side} {tuple(b.shape)}" for side in SIDES if (b := self._held(side)) is not None)
        state += f" in {self.stored}" if state and self.stored != codes.FULL else ""
        return f"{self.site}, {self.spec.granularity.name}, {self.policy.name}, {state or 'bounds not set'}"


def bounded_sites(model: nn.Module) -> dict[str, Bounded]:
    """Site name -> its bound, in call order."""
    if isinstance(model, GraphModule):
        called = [called_module(node) for _, node in nodes_in_call_order(model) if node.op == "call_module"]
    else:
        called = list(model.modules())
    return {module.site: module for module in called if isinstance(module, Bounded)}


@contextmanager
def exchanged(model: nn.Module, policy: Policy) -> Iterator[None]:
    """Every site of `model` follows `policy` inside, and its own again behind."""
    own = {module: module.policy for module in bounded_sites(model).values()}
    try:
        for module in own:
            module.policy = policy
        yield
    finally:
        for module, before in own.items():
            module.policy = before


@contextmanager
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """Behind an error or an interrupt, the bounds are the very tensors, in the very format, that they were."""
    before = [(module, module.memory, module.stored) for module in bounded_sites(model).values()]
    try:
        yield
    except BaseException:
        for module, memory, stored in before:
            module.hold(memory, stored)
        raise
