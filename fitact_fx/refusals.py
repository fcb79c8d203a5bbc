"""What no graph can express, and how that is said: which module, which line of the user's, what to do."""

import inspect
import re
import traceback
from inspect import Parameter as Argument

import torch
from torch import nn
from torch.fx import Node
from torch.nn.parameter import is_lazy

from fitact_fx.errors import TracingError
from fitact_fx.source import describe, is_torch, owner_path, source_line

_FACTORY = re.compile(r"(zeros|ones|empty|rand|randn)\(\) ")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def refuse_other_things(model: object) -> None:
    """What is no module, or holds one without Python code to follow."""
    if not isinstance(model, nn.Module):
        raise TracingError(f"expected an nn.Module, got {type(model).__name__};\n  pass the model object itself")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise TracingError(f"a {type(model).__name__} only calls another model;\n  pass its .module")
    for name, module in model.named_modules():
        what = f"module {name!r} of this model" if name else "this model"
        if isinstance(module, torch.jit.ScriptModule):
            raise TracingError(
                f"{what} is a ScriptModule, which has no Python code left to trace;\n  pass the original"
            )
        if "_orig_mod" in module._modules:
            raise TracingError(f"{what} is compiled already;\n  pass the original, and compile the result")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise TracingError(f"{name} has no shape yet;\n  run the model once on a batch, which gives it one")
    if "forward" in vars(model):
        raise TracingError(
            f"the forward of this {type(model).__name__} was replaced on the object, where tracing does not look;\n"
            "  put the replacement in a subclass or in a wrapping module"
        )
    _refuse_signature(model)
    refuse_hooks(f"the model itself ({type(model).__name__})", model)


def _refuse_signature(model: nn.Module) -> None:
    """A graph's arguments are all positional, so these could be called in another order than the model's."""
    arguments = list(inspect.signature(inspect.unwrap(type(model).forward)).parameters.values())
    by_name = [each for each in arguments if each.kind is Argument.KEYWORD_ONLY]
    if not by_name:
        return
    several = any(each.kind is Argument.VAR_POSITIONAL for each in arguments)
    first_default = next((place for place, each in enumerate(arguments) if each.default is not Argument.empty), None)
    behind = arguments[first_default:] if first_default is not None else []
    required = [each for each in by_name if several or (each in behind and each.default is Argument.empty)]
    if required:
        raise TracingError(
            f"forward takes {required[0].name!r} by name only, behind arguments that may be left out;\n"
            "  wrap the model in a module whose forward takes it by position"
        )


def refuse_hooks(where: str, module: nn.Module) -> None:
    """A module that is traced through would run its hooks on stand-ins, once."""
    for table in _HOOKS:
        for hook in getattr(module, table).values():
            called = getattr(hook, "__qualname__", repr(hook))
            line = inspect.getsourcefile(hook) if inspect.isfunction(hook) else ""
            place = f" ({line}:{hook.__code__.co_firstlineno})" if line else ""
            raise TracingError(
                f"{where} has a hook, {called}{place}, which tracing would run once and forget;\n"
                "  remove it (handle.remove()) before hardening, and register it on the hardened model"
            )


def changed_buffer(name: str) -> TracingError:
    """Forward stored something in a buffer where the graph does not see it."""
    return TracingError(
        f"forward changes the model's own buffer {name!r}, and a graph would lose that;\n"
        "  change it in place (self.name.copy_(value)), or compute the value without storing it",
        name.rpartition(".")[0],
    )


def changed_constant(node: Node) -> TracingError:
    """A tensor made in forward was changed after the graph had taken it, or one that shares memory with it."""
    what = "uses a tensor made in forward, and later changes it or another view of its memory"
    return _frozen(node, what, "make it from the inputs (x.new_zeros), or finish it before it is first used")


def frozen_autocast(node: Node) -> TracingError:
    """The code before this node entered an autocast region, or left one."""
    return _frozen(node, "runs inside an autocast region of its own", "open autocast around the model's call")


def frozen_random(node: Node) -> TracingError:
    """The code before this node drew a random number."""
    what = "draws random numbers that do not depend on its inputs (at this line or before it)"
    remedy = "draw them with a module such as nn.Dropout, with torch.rand_like, or pass them in as an argument"
    return _frozen(node, what, remedy)


def frozen_state(where: str, owner: str) -> TracingError:
    """Two recordings of the same model differ."""
    return TracingError(
        f"forward does something else each time it runs ({where})\n"
        "  such as counting its calls, reading a clock or a random generator of its own, which a graph would freeze;\n"
        "  pass the changing value in as an argument",
        owner,
    )


def _frozen(node: Node, what: str, remedy: str) -> TracingError:
    owner = owner_path(node)
    where = f"{owner or 'the model itself'} ({source_line(node)})"
    return TracingError(f"{where}\n  {what}, which a graph would freeze;\n  {remedy}", owner)


def untraceable(error: Exception, module: str, path: str, own_files: frozenset[str]) -> TracingError:
    """User code raised `error` when it met a stand-in."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_torch(frame.filename)]
    theirs = [frame for frame in frames if frame.filename not in own_files]
    where = describe(theirs[-1].filename, theirs[-1].lineno or 0, theirs[-1].name) if theirs else "no source line"
    text = str(error).strip()
    reason = text.splitlines()[0].rstrip(".") if text else type(error).__name__
    factory = _FACTORY.match(reason)
    if factory and f"torch.{factory[1]}(" in where:
        return TracingError(
            f"cannot trace {module} ({where})\n  torch.{factory[1]} cannot take sizes of tensors one by one;\n"
            f"  give all sizes as one tuple, torch.{factory[1]}((x.size(0), ...))"
            + ("" if factory[1].startswith("rand") else f", or write x.new_{factory[1]}(...)"),
            path,
        )
    return TracingError(
        f"cannot trace {module} ({where})\n  {reason};\n"
        "  decide on shapes and options in __init__ and not on tensor values in forward, or move that "
        'line into a function marked with torch.fx.wrap("name")',
        path,
    )
