"""What learning may change: bounds, and after an error not even these."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from fitact_fx.ambience import random_states_kept
from fitact_fx.bounded import restored_on_error
from fitact_fx.ranges import evaluating


@contextmanager
def only_bounds_change(hard: nn.Module, seed: int) -> Iterator[None]:
    """Inside, the model is in evaluation mode and chance starts from `seed`; behind, modes and chance are as before.

    Gradients are kept inside, also for a caller who keeps none. If anything is raised, the bounds are as before, too.
    """
    with ExitStack() as stack:
        stack.enter_context(random_states_kept())
        stack.enter_context(evaluating(hard))
        stack.enter_context(restored_on_error(hard))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        torch.manual_seed(seed)
        yield
