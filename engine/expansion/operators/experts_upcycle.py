"""Sparse upcycling: the feed-forward network copied into E experts, a new router that chooses k of them per token.

    y = sum over chosen e of w_e FFN_e(x),     FFN_e = FFN,  sum of w_e = 1     ->     y = FFN(x)

Exact for any router whose weights are renormalised over the chosen experts (Mixtral, Qwen3-MoE), which are the families
this makes. Experts are equal at first and no twins nevertheless: each is trained by the tokens that choose it, weighted
by the router, and the random router sends them different ones. The router itself has no gradient in the first step
(which of equal experts is chosen makes no difference) and gets one in the second.

"drop-upcycle" draws half of every expert's units anew, in 32 blocks of neighbouring units, other ones in each expert:
experts differ at once and learn faster in the end, by its authors' account, but the function is lost. Drawn values have
the standard deviation 0.02 where the paper takes the old weights'.
Sources: Komatsuzaki et al., "Sparse Upcycling", ICLR 2023 (arXiv 2212.05055); exactness derived; Nakamura et al.,
"Drop-Upcycling", ICLR 2025 (arXiv 2502.19261). The recipes are made by `engine.expansion.upcycling`.
"""

from __future__ import annotations

from engine.expansion.axes import Dim
from engine.expansion.operators.registry import Operator

UPCYCLE = Operator(
    name="upcycle",
    title="sparse upcycling",
    axes=(Dim.EXPERT.value,),
    exact="always",
    loses="",
    source="Komatsuzaki et al. 2023, Sparse Upcycling (arXiv 2212.05055); exactness derived here",
)
DROP_UPCYCLE = Operator(
    name="drop-upcycle",
    title="drop-upcycling",
    axes=(Dim.EXPERT.value,),
    exact="never",
    loses="The function: half of every expert is drawn anew, and the loss jumps until the experts have been trained.",
    source="Nakamura et al. 2025, Drop-Upcycling (arXiv 2502.19261)",
)
