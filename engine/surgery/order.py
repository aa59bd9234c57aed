"""From a source folder and a plan to everything the surgery needs to know, checked and before any byte is written.

Owns reading the source's config and headers and asking the plan's modules for recipes and the new config. Must not
write anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

import engine
from engine.errors import EngineError
from engine.expansion.config_splice import config_after
from engine.expansion.layout import Layout
from engine.expansion.packed import BITSANDBYTES, quantisation, refusal, why_not
from engine.expansion.plan import ExpansionPlan
from engine.expansion.plan_io import plan_tree
from engine.expansion.recipe import Recipe
from engine.expansion.recipes import build_recipes, matrix_dtype, work_for
from engine.expansion.support import supported_layout
from engine.models.folder import check_folder
from engine.models.headers import Headers, read_headers
from engine.models.weights import DTYPE_NAMES
from engine.surgery import checks
from engine.surgery.packed import packed_growth
from engine.surgery.reader import TensorReader
from engine.surgery.shards import Shard, split
from engine.surgery.staging import Order, SourceFile


@dataclass(frozen=True, slots=True)
class Prepared:
    """A source and a plan, understood."""

    source: Path
    plan: ExpansionPlan
    config: Mapping[str, Any]
    """The source's."""
    headers: Headers
    layout: Layout
    recipes: tuple[Recipe, ...]
    shards: tuple[Shard, ...]
    shard_bytes: int
    config_after: Mapping[str, Any]
    files: tuple[SourceFile, ...]
    literals: Mapping[str, bytes] = field(default_factory=dict)
    """Tensors that are given as bytes."""

    @property
    def total_bytes(self) -> int:
        """Of all output weight files."""
        return sum(shard.size_bytes for shard in self.shards)

    @property
    def order(self) -> Order:
        """What is frozen in the staging folder."""
        return Order(
            program=program(),
            source=str(self.source),
            files=self.files,
            plan=plan_tree(self.plan),
            recipes_sha256=recipes_sha256(self.recipes),
            shard_bytes=self.shard_bytes,
        )


def prepare(source: Path, plan: ExpansionPlan, shard_bytes: int) -> Prepared:
    """Read and check everything. Raises EngineError `model.*`, `safetensors.*`, `expansion.*`, `surgery.*`."""
    config = check_folder(source)
    headers = read_headers(source)
    checks.check_duplicates(headers)
    method = quantisation(config)
    if method and (method != BITSANDBYTES or why_not(plan)):
        raise refusal(source.name, method, why_not(plan) if method == BITSANDBYTES else "", "surgery.quantised")
    layout = supported_layout(config, source.name)
    check_same_model(layout, plan, source.name)
    checks.check_tied_head(headers, layout)
    with TensorReader(headers.tensors) as reader:
        recipes, literals = recipes_for(config, headers, layout, plan, reader)
    stored = matrix_dtype(headers)
    scales = work_for(layout, plan, checks.stored_name(plan.dtype) or stored).scales
    after = config_after(config, layout, plan, scales, stored_dtype="" if method else DTYPE_NAMES.get(stored, ""))
    return Prepared(
        source=source,
        plan=plan,
        config=config,
        headers=headers,
        layout=layout,
        recipes=recipes,
        shards=split(recipes, shard_bytes),
        shard_bytes=shard_bytes,
        config_after=after,
        files=checks.source_files(source, headers),
        literals=literals,
    )


def recipes_for(
    config: Mapping[str, Any], headers: Headers, layout: Layout, plan: ExpansionPlan, reader: TensorReader | None
) -> tuple[tuple[Recipe, ...], Mapping[str, bytes]]:
    """The recipes, and the tensors that are given as bytes; without a reader only the recipes are complete."""
    if quantisation(config):
        grown = packed_growth(headers, layout, plan, reader)
        return grown.recipes, grown.literals
    return build_recipes(headers, layout, plan), {}


def check_same_model(layout: Layout, plan: ExpansionPlan, name: str) -> None:
    """Raises EngineError `surgery.other_model` when a plan was made for other sizes or another family."""
    if (layout.family, layout.dims) != (plan.family, plan.before):
        raise EngineError(
            "surgery.other_model",
            f"The plan was not made for {name}.",
            cause=f"It begins at a {plan.family} of {plan.before.layers} layers and hidden size {plan.before.hidden}; "
            f"this is a {layout.family} of {layout.dims.layers} and {layout.dims.hidden}.",
            next_step="Plan the expansion of this model.",
        )


def recipes_sha256(recipes: Sequence[Recipe]) -> str:
    """A digest of every instruction: equal digests and equal sources give equal bytes."""
    hasher = hashlib.sha256()
    for recipe in recipes:
        hasher.update(msgspec.json.encode(recipe))
    return hasher.hexdigest()


def program() -> str:
    """ "scaler-wizard 0.1.0"."""
    return f"scaler-wizard {engine.__version__}"
