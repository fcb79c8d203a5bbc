"""Run times beside each other."""

from collections.abc import Callable

import torch
from torch import Tensor

from fitact_fx.campaigns.run_time import fastest_runs


def test_the_fastest_run_of_each_is_kept() -> None:
    runs = {"a": 0, "b": 0}

    def counted(name: str) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            runs[name] += 1

        return run

    fastest = fastest_runs({name: counted(name) for name in runs}, torch.zeros(1), seconds=0)
    assert set(fastest) == {"a", "b"}
    assert min(fastest.values()) >= 0
    assert runs == {"a": 6, "b": 6}  # one to warm up and five rounds
