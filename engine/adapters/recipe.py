"""What is to be mixed, and how.

Owns the request and its own limits. Must not know tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.adapters.folder import AdapterFolder
from engine.errors import EngineError
from engine.jobs.spec_mix import MixMethod, Signs

DEFAULT_SEED = 17


@dataclass(frozen=True, slots=True)
class Recipe:
    """How updates become one; the fields mean what [mix] says."""

    method: MixMethod = MixMethod.EXACT
    density: float = 0.5
    signs: Signs = Signs.TOTAL
    rank: int = 0
    seed: int = DEFAULT_SEED

    @property
    def is_sum(self) -> bool:
        """Whether the result is the weighted sum itself, rounded by nothing but its rank."""
        return self.method in (MixMethod.EXACT, MixMethod.LINEAR, MixMethod.SVD)

    @property
    def draws(self) -> bool:
        """Whether numbers are dropped at random."""
        return self.method in (MixMethod.DARE, MixMethod.DARE_TIES)

    @property
    def is_exact(self) -> bool:
        """Whether the result has the rank that it needs."""
        return self.is_sum and self.rank == 0


EXACT = Recipe()


@dataclass(frozen=True, slots=True)
class Share:
    """An adapter and its weight."""

    adapter: AdapterFolder
    weight: float = 1.0
    name: str = ""
    """For reports."""

    @property
    def label(self) -> str:
        """The name, else the folder's."""
        return self.name or self.adapter.path.resolve().name


def used_shares(shares: Sequence[Share]) -> tuple[Share, ...]:
    """Without those of weight 0, which have no part in a mix and no vote. Raises EngineError `adapter.mix` where none
    is left."""
    used = tuple(share for share in shares if share.weight != 0)
    if shares and not used:
        raise EngineError(
            "adapter.mix",
            "Every weight is 0, and that mix is the base itself.",
            next_step="Give one adapter another weight.",
        )
    return used


def weights_of(shares: Sequence[Share], recipe: Recipe) -> tuple[float, ...]:
    """What every update is multiplied by: the weights, for `linear` divided by their sum. Raises EngineError
    `adapter.mix` for a request that cannot be carried out."""
    used_shares(shares)
    weights = tuple(share.weight for share in shares)
    if not shares:
        raise EngineError("adapter.mix", "No adapter is given.", next_step="Name at least one.")
    if not all(map(math.isfinite, weights)):
        raise EngineError("adapter.mix", "A weight is not a number.", next_step="Give numbers, such as 0.5 or -1.")
    if not 0 < recipe.density <= 1:
        raise EngineError(
            "adapter.mix",
            f"A density of {recipe.density:g} is not above 0 and at most 1.",
            cause="It is the share of an update that is kept.",
            next_step="Give 0.5, for instance; 1 keeps everything.",
        )
    if recipe.method is MixMethod.SVD and recipe.rank == 0:
        raise EngineError("adapter.mix", "svd cuts to a rank, and none is given.", next_step="Give one with --rank.")
    if recipe.method is not MixMethod.LINEAR:
        return weights
    total = math.fsum(weights)
    if abs(total) < 1e-9 * max(map(abs, weights), default=0.0) or total == 0:
        raise EngineError(
            "adapter.mix",
            "linear divides the weights by their sum, which is 0.",
            next_step="Use --method exact, which takes weights as they are.",
        )
    return tuple(weight / total for weight in weights)
