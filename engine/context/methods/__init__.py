"""The scaling methods, one registry. A method is a formula and how a config says it; see `engine.context.method`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from engine.context.method import Method
from engine.context.methods.abf import ABF
from engine.context.methods.base_change import NTK, NTK_CRITICAL
from engine.context.methods.by_parts import BY_PARTS, YARN
from engine.context.methods.dynamic import DYNAMIC
from engine.context.methods.linear import LINEAR
from engine.context.methods.llama3 import LLAMA3
from engine.context.methods.longrope import LONGROPE
from engine.context.methods.longrope2 import LONGROPE2

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.id: method
        for method in (LINEAR, NTK, NTK_CRITICAL, ABF, DYNAMIC, BY_PARTS, YARN, LLAMA3, LONGROPE, LONGROPE2)
    }
)
