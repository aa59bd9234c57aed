"""What each family stores: config in, one rule per stored tensor out. Importing the package registers all families.

To add a family, decorate a builder with `@family("model_type", ...)` in the module of its block style; to refuse one
by name, add it in `refused`. Must not know what growth does to a tensor.
"""

from __future__ import annotations

from engine.expansion.layouts import (
    dense,
    falcon,
    gpt2,
    layernorm_llama,
    leading_dense,
    mixtures,
    neox,
    normed_branches,
    opt,
    refused,
    shared_mixtures,
)
from engine.expansion.layouts.registry import known_families, layout_for, refused_families

MODULES = (
    *(dense, normed_branches, mixtures, shared_mixtures, leading_dense),
    *(layernorm_llama, neox, falcon, gpt2, opt),
    refused,
)
"""Modules that register families, one per block style, and the one that refuses some by name."""

__all__ = ["MODULES", "known_families", "layout_for", "refused_families"]
