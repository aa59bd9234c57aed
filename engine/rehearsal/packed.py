"""A 4-bit linear layer on fake tensors: what bitsandbytes keeps and makes on a card, without its kernels.

Owns the emulation of `bitsandbytes.nn.Linear4bit` in memory terms. Source: bitsandbytes 0.50 `nn/modules.py`,
`autograd/_functions.py` and the CUDA backend, which unpacks the matrix into the compute type for every product with
more than a few rows. Must not know models.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes import nn as bnb_nn
from torch import Tensor, nn

BLOCK = 64
NESTED_BLOCK = 256


class _Product(torch.autograd.Function):
    """x · Wᵀ with W unpacked for the product and again for the gradient; only the packed matrix is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        ctx.shape, ctx.packed = shape, packed
        return nn.functional.linear(x, torch.empty(shape, dtype=x.dtype, device=x.device), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        weight = torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device)
        return torch.matmul(gradient, weight), None, None, None


class FakeLinear4bit(bnb_nn.Linear4bit):  # type: ignore[misc, name-defined]
    """Takes the place of a linear layer; peft wraps it with its own 4-bit adapter class, as it does the real one."""

    def __init__(self, linear: nn.Linear, compute_dtype: torch.dtype, kind: str, *, double: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.compute_dtype, self.quant_type = compute_dtype, kind
        values = linear.in_features * linear.out_features
        device = linear.weight.device
        blocks = -(-values // BLOCK)
        weight = nn.Parameter(torch.empty((values + 1) // 2, 1, dtype=torch.uint8, device=device), requires_grad=False)
        weight.compress_statistics, weight.quant_type = double, kind  # type: ignore[attr-defined]
        self.weight = weight
        self.bias = linear.bias
        scales = torch.empty(blocks, dtype=torch.uint8 if double else torch.float32, device=device)
        self.register_buffer("scales", scales)
        if double:
            self.register_buffer("nested", torch.empty(-(-blocks // NESTED_BLOCK), device=device))

    def forward(self, x: Tensor) -> Tensor:
        """As `Linear4bit.forward`: compute type in, product, input type out."""
        given = x.dtype
        x = x.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        product: Tensor = _Product.apply(x, self.weight, (self.out_features, self.in_features), bias)  # type: ignore[no-untyped-call]
        return product.to(given)

    @property
    def W_q(self) -> nn.Parameter:
        """Its presence has peft ask the layer itself for its whole matrix, which DoRA needs."""
        return self.weight

    def dequantize(self) -> Tensor:
        """The matrix in the type it was packed from."""
        return torch.empty(self.out_features, self.in_features, dtype=self.compute_dtype, device=self.weight.device)


def pack_linears(model: nn.Module, head: nn.Module | None, dtype: torch.dtype, kind: str, *, double: bool) -> None:
    """Replace every linear layer but the head, as transformers does when it loads in 4 bits."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child is not head and not isinstance(child, FakeLinear4bit):
                setattr(parent, name, FakeLinear4bit(child, dtype, kind, double=double))
