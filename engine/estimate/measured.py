"""What measuring a long text holds: its keys and values, logits of a piece, the layer in work.

Owns that formula. Must not know what is measured, nor what else is in memory. Source: `engine.evaluation.long_pass` and
`length_memory`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.estimate.state import key_value_cache_bytes
from engine.estimate.walks import layer_walk
from engine.estimate.workload import DeviceKind, Workload

MEASURED_AT_ONCE = {DeviceKind.CPU: 8192, DeviceKind.GPU: 4096}
MEASURED_LOGITS = (256 * 1024**2, 10)
"""Tokens of measured texts that go through the layers together, and their logits: at most so many bytes, each with its
fp32 copy and logarithm. A card takes more where there is more, and halves where there is less (`engine.evaluation`)."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes."""

    cache: float
    """Of a haystack, and of the copy that a question goes on from."""
    logits: float
    layer: float


def measured_bytes(work: Workload) -> Measured:
    """Of a text of `work.measured_tokens`."""
    chunk = float(MEASURED_AT_ONCE[work.device])
    most, each = MEASURED_LOGITS
    walk = layer_walk(replace(work, checkpointing=True), learns=False)
    return Measured(
        cache=2.0 * key_value_cache_bytes(replace(work, batch=1, sequence=work.measured_tokens)),
        logits=float(min(most, each * work.architecture.vocab_size * chunk)),
        layer=max(moment.total(chunk, chunk) for moment in walk.forward),
    )
