"""What a hardened model gives with no bound at all."""

import torch
from torch import Tensor, nn

from fitact_fx.answers import logits_of
from fitact_fx.batches import Batch
from fitact_fx.bounded import exchanged
from fitact_fx.policies import Pass


def clean_scores(hard: nn.Module, batch: Batch) -> Tensor:
    """The class scores of the model without its bounds, without gradients."""
    with torch.no_grad(), exchanged(hard, Pass()):
        return logits_of(batch.run(hard))
