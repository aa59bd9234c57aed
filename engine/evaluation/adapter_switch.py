"""An adapter switched off and on again, as often as a micro-batch is computed.

Owns the one flag that is not public in peft. Must not know who asks without the adapter, nor why.

peft's own `disable_adapter` looks through every module for the model's status and lets all parameters of the adapter
need no gradient, and then need one: tens of milliseconds, and a parameter that was frozen would learn. Here layers are
found once, and only what their forward pass asks for is set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

_FLAG = "_disable_adapters"
"""Behind the read-only property `disable_adapters` of both classes."""


class AdapterSwitch:
    """Make it once the adapter is on the model: what is added later stays on."""

    def __init__(self, model: nn.Module) -> None:
        """Of all adapted layers in `model`, heads and embeddings that are trained as a whole among them."""
        kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        self._layers = [module for module in model.modules() if isinstance(module, kinds)]

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """The model as it was before the adapter; what was off before stays off. Changes no `requires_grad`."""
        were = [bool(getattr(layer, _FLAG)) for layer in self._layers]
        try:
            for layer in self._layers:
                setattr(layer, _FLAG, True)
            yield
        finally:
            for layer, was in zip(self._layers, were, strict=True):
                setattr(layer, _FLAG, was)
