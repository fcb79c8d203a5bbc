"""Hypothesis strategies for arbitrary small networks, to test whatever rewrites models.

A property test of a rewrite of your own::

    import torch
    from hypothesis import given
    from fitact_fx.testing import architectures


    @given(architectures())
    def test_the_rewrite_keeps_the_outputs(architecture):
        model, inputs = architecture.module(), architecture.inputs()
        rewritten = rewrite(architecture.module())
        torch.testing.assert_close(rewritten(*inputs), model(*architecture.inputs()))

(A model may overwrite its inputs, so each gets its own.) What fails is shown as Python code that runs on its own.
"""

try:
    import hypothesis  # noqa: F401  asked for here, where a missing package can still be explained
except ImportError as error:
    raise ImportError("fitact_fx.testing needs Hypothesis;\n  pip install 'fitact-fx[testing]'") from error

from fitact_fx.testing.architecture import Architecture
from fitact_fx.testing.step import Layer, Made, Step, among
from fitact_fx.testing.strategies import STEPS, architectures, batches
from fitact_fx.testing.writing import Call, Writer

__all__ = ["STEPS", "Architecture", "Call", "Layer", "Made", "Step", "Writer", "among", "architectures", "batches"]
