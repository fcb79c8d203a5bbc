"""A copy of a model that owns its modules and buffers and shares only the Parameters.

The graph we edit hangs from such a copy, so nothing we do to it (modes, BatchNorm statistics,
hooks, bounds) reaches the user's model, and no weight is held twice.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@torch.inference_mode(mode=False)  # whose tensors no gradient could be taken through later
def owned_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose Parameters are the model's own objects.

    What cannot be copied (a lock, an open file) is shared. A tensor that an earlier forward left
    behind, with its autograd history, is copied without that history.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    attributes = [value for module in model.modules() for value in vars(module).values()]
    for value in attributes:
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    try:
        return _like_the_model(copy.deepcopy(model, dict(memo)), model)
    except Exception:  # noqa: BLE001  any object may refuse to be copied in its own way: find which ones, and share those
        memo |= {id(value): value for value in attributes if not _can_be_copied(value, memo)}
        return _like_the_model(copy.deepcopy(model, memo), model)


def _like_the_model(copied: nn.Module, model: nn.Module) -> nn.Module:
    """Without attributes that hide a child: torch's decoder layer gets a ReLU as `activation` when it is copied."""
    originals = dict(model.named_modules())
    for path, ours in copied.named_modules():
        theirs = originals.get(path)  # none if the model copies itself in a way of its own
        for name in vars(ours).keys() - vars(theirs).keys() if theirs is not None else ():
            if theirs is not None and name in theirs._modules:
                del vars(ours)[name]  # not delattr, which takes the child
    return copied


def _can_be_copied(value: object, memo: dict[int, Any]) -> bool:
    if isinstance(value, dict):  # the module's own tables: what they hold is asked for itself
        return True
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:  # noqa: BLE001  whatever it raised, the answer is no
        return False
    return True


def evaluating_copy(model: nn.Module) -> nn.Module:
    """An owned copy in evaluation mode, whatever the model's own `train` does to the Parameters, which are shared."""
    own = owned_copy(model)
    with trainability_kept(model):
        own.eval()
    return own


@contextmanager
def trainability_kept(model: nn.Module) -> Iterator[None]:
    """The Parameters are the user's: each has behind it the `requires_grad` that it had."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for parameter, required in before.items():
            if parameter.requires_grad != required:
                parameter.requires_grad = required


@contextmanager
def buffers_kept(own: nn.Module) -> Iterator[None]:
    """What runs of a copy write to its buffers (a count, a cache), or put in their place, is undone behind it."""
    tables = [(module._buffers, dict(module._buffers)) for module in own.modules()]
    before = {
        buffer: (buffer._version, buffer.detach().clone())
        for _, held in tables
        for buffer in held.values()
        if buffer is not None
    }
    try:
        yield
    finally:
        for table, held in tables:
            table.update(held)
        with torch.no_grad():
            for buffer, (version, content) in before.items():
                if buffer._version != version or _was_written_unseen(buffer, content):
                    buffer.copy_(content)


def _was_written_unseen(buffer: Tensor, content: Tensor) -> bool:
    """Whether it is another than it was; a write through `.data` counts as no version."""
    if buffer.layout != torch.strided or buffer.is_quantized or buffer.is_meta:
        return False  # such cannot be compared
    both_nan = (buffer != buffer) & (content != content)
    return not bool(((buffer == content) | both_nan).all())


@contextmanager
def as_before_if_it_fails(root: nn.Module) -> Iterator[None]:
    """If what is done inside raises, every module of `root` has the attributes that it had.

    Code that runs on stand-ins may leave some of them behind: in an attribute, or in a list or dict of its own.
    """
    own = {module: dict(vars(module)) for module in root.modules()}
    held = [
        (value, copy.copy(value))
        for attributes in own.values()
        for value in attributes.values()
        if isinstance(value, dict | list | set)
    ]
    try:
        yield
    except BaseException:
        for module, attributes in own.items():
            vars(module).clear()
            vars(module).update(attributes)
        for value, before in held:
            value.clear()
            if isinstance(value, list):
                value.extend(before)
            else:
                value.update(before)
        raise


def skeleton(root: nn.Module, leaves: frozenset[nn.Module]) -> nn.Module:
    """The same tree of names over the same leaves, Parameters and buffers, with empty modules between.

    What the graph calls is kept as it is; a module that was traced through becomes an empty one of
    the same training mode, so that nobody calls its old, unprotected `forward` by mistake. Names and
    their order stay the model's own, tied Parameters and unused ones included.
    """
    return _bones(root, "", leaves, frozenset(root.state_dict().keys()), {})


def _bones(
    module: nn.Module,
    path: str,
    leaves: frozenset[nn.Module],
    saved: frozenset[str],
    built: dict[nn.Module, nn.Module],
) -> nn.Module:
    if module in leaves:
        return module
    if module in built:
        return built[module]
    bone = built[module] = nn.Module()
    bone.training = module.training
    for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
        bone.register_parameter(name, parameter)
    for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
        bone.register_buffer(name, buffer, persistent=path + name in saved)
    for name, child in module._modules.items():  # named_children would drop a child that has two names
        if child is not None:
            bone.add_module(name, _bones(child, f"{path}{name}.", leaves, saved, built))
    return bone
