"""What a policy needs that looks at whole feature maps: where the channels lie."""

from dataclasses import dataclass, replace

from torch import Tensor

from fitact_fx.policies.limits import Policy


@dataclass(frozen=True)
class FeatureMaps:
    """Feature maps in activations (N, ...): all values of one sample and one channel are one map.

    `dim` says where the channel lies (1 behind a convolution, -1 behind a linear layer), `rank` how many dimensions
    the activations have, batch included; None while that is not known. A rank-2 activation (N, C) has its channel in
    dimension 1 whatever `dim` says. `harden` tells a policy both, so they are no options of it.
    """

    dim: int | None = None
    rank: int | None = None

    def refusal(self, rank: int) -> str | None:
        """Why activations of this rank have no feature maps that are known; None where they have."""
        if self.rank not in (None, rank):
            # An input without its batch dimension has its channel one place further to the front.
            return f"an activation of rank {rank}, and its channel is known for rank {self.rank}"
        if rank == 2:
            return None
        if rank < 2 or self.dim is None or not -rank < self.dim < rank or self.dim == 0:
            return f"an activation of rank {rank}, and its channel in dimension {self.dim}"
        return None

    def channel(self, values: Tensor) -> int:
        """The dimension of `values` that holds the channels."""
        rank = self._rank(values)
        assert self.dim is not None or rank == 2  # `refusal` was asked
        return 1 if rank == 2 or self.dim is None else self.dim % rank

    def within(self, values: Tensor) -> tuple[int, ...]:
        """The dimensions that one map extends over: (2, 3) in (N, C, H, W), (1,) in (N, L, C), none in (N, C)."""
        channel = self.channel(values)
        return tuple(dim for dim in range(1, self._rank(values)) if dim != channel)

    def _rank(self, values: Tensor) -> int:
        return values.ndim if self.rank is None else self.rank  # a proxy cannot be asked


def at_dim(policy: Policy, dim: int | None, rank: int | None = None) -> Policy:
    """The same policy, told where the channel lies, in activations of which rank."""
    return replace(policy, dim=dim, rank=rank) if isinstance(policy, FeatureMaps) else policy
