"""What is to be estimated: one architecture trained one way on one kind of device.

Owns the description of a job as the formulas need it. Must not know machines, prices or where settings come from.
Symbols used in every formula of this package: h hidden, f feed-forward, L layers, q = heads x head_dim,
kv = key/value heads x head_dim, a heads, V vocabulary, s sequence, b micro-batch, T = b·s tokens, r rank,
P parameters that 4-bit packs, N all parameters, A adapter parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from engine.errors import EngineError
from engine.models.architecture import Architecture

ALL_LINEAR = ("all-linear",)
MAX_TOKENS_PER_MICRO_BATCH = 1 << 26


class Method(StrEnum):
    """Which parameters learn."""

    ADAPTER = "adapter"
    """LoRA on frozen weights, packed or not."""
    FULL = "full"
    """Every parameter."""
    NEW_BLOCKS = "new blocks"
    """Only the last `trained_layers` inserted blocks; the old ones are frozen (LLaMA-Pro)."""


class Packing4Bit(StrEnum):
    """How the frozen base is stored."""

    NONE = "none"
    NF4 = "nf4"
    NF4_DOUBLE = "nf4 double"


class OptimizerKind(StrEnum):
    ADAMW = "adamw"
    ADAMW_8BIT = "adamw 8-bit"
    ADAMW_MIXED = "adamw mixed"
    """bf16 weights with fp32 master copy and fp32 states."""


class DeviceKind(StrEnum):
    GPU = "gpu"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Workload:
    """One job as the formulas see it. Raises EngineError `estimate.value` on impossible values."""

    architecture: Architecture
    method: Method = Method.ADAPTER
    packing: Packing4Bit = Packing4Bit.NONE
    batch: int = 1
    sequence: int = 1024
    rank: int = 16
    targets: tuple[str, ...] = ALL_LINEAR
    checkpointing: bool = True
    masked: bool = False
    """A mask reaches attention: packed or padded rows."""
    eager_attention: bool = False
    accumulation: int = 1
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    foreach: bool = False
    """Whether the optimizer step makes one more copy (torch's `foreach`; `fused` does not)."""
    trained_layers: int = 0
    compute_bytes: int = 2
    """2 for bf16/fp16, 4 for fp32."""
    adapter_bytes: int = 4
    """PEFT keeps adapters in fp32 unless told otherwise."""
    fused_loss: bool = False
    """The loss never holds all logits (chunked or fused cross-entropy)."""
    shards: int = 1
    """Cards over which ZeRO-3/FSDP divides the state."""
    teacher: Architecture | None = None
    """A frozen teacher held in memory as NF4 (distillation)."""
    device: DeviceKind = DeviceKind.GPU
    workspace_bytes: int = 2 * 8_519_680
    """cuBLAS workspaces of the forward and the autograd thread."""
    expandable_segments: bool = False

    def __post_init__(self) -> None:
        limits = (
            ("batch", self.batch, 1, 4096),
            ("sequence", self.sequence, 1, 1 << 24),
            ("rank", self.rank, 1, 65_536),
            ("shards", self.shards, 1, 65_536),
            ("tokens per micro-batch", self.batch * self.sequence, 1, MAX_TOKENS_PER_MICRO_BATCH),
        )
        for name, value, low, high in limits:
            if not low <= value <= high:
                raise EngineError(
                    "estimate.value",
                    f"{name} is {value:,}; it must be from {low:,} to {high:,}.",
                    next_step=f"Choose a {name} in that range.",
                )
        if self.method is not Method.ADAPTER and self.packing is not Packing4Bit.NONE:
            raise EngineError(
                "estimate.conflict",
                "Weights packed to 4 bits cannot be trained themselves.",
                cause="4-bit values have no usable gradient; only an adapter beside them can learn.",
                next_step="Use QLoRA (an adapter on packed weights), or full training in bfloat16.",
            )

    @property
    def tokens(self) -> int:
        """T: tokens of one micro-batch."""
        return self.batch * self.sequence

    @property
    def packed(self) -> bool:
        """True when the frozen base is stored in 4 bits."""
        return self.packing is not Packing4Bit.NONE
