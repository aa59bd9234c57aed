"""What is to be estimated: one architecture trained (or asked) one way on one kind of device.

Owns the description of a job as the formulas need it. Must not know machines, prices or where settings come from.
Symbols used in every formula of this package: h hidden, f feed-forward, L layers, q = heads x head_dim,
kv = key/value heads x head_dim, a heads, V vocabulary, s sequence, b micro-batch, T = b·s tokens, r rank,
P parameters that 4-bit packs, N all parameters, A adapter parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from engine.errors import EngineError
from engine.estimate.stacks import OURS, Stack
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
    """Only `trained_layers` inserted blocks; the old ones are frozen (LLaMA-Pro)."""


class Purpose(StrEnum):
    """What the device is asked to do."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    """Forward passes without gradients, logits of every position."""
    GENERATE = "generate"
    """Token by token with a KV cache of `sequence` positions for `batch` sequences."""


class Packing4Bit(StrEnum):
    """How the frozen base is stored."""

    NONE = "none"
    NF4 = "nf4"
    NF4_DOUBLE = "nf4 double"
    """The scales are quantised as well."""
    GPTQ = "gptq"
    """Packed int4 with scales per group of 128 and an index per input row."""


class OptimizerKind(StrEnum):
    ADAMW = "adamw"
    ADAMW_8BIT = "adamw 8-bit"
    PAGED_ADAMW_8BIT = "paged adamw 8-bit"
    """8-bit states in unified memory: they leave the card when it is full."""
    ADAMW_MIXED = "adamw mixed"
    """bf16 weights with fp32 master copy and fp32 states."""
    SGD = "sgd"
    """No state."""


class Attention(StrEnum):
    """Which kernel computes attention."""

    SDPA = "sdpa"
    FLASH = "flash"
    EAGER = "eager"
    """Scores of all pairs are kept: quadratic in the sequence."""


class Loss(StrEnum):
    """How logits meet the loss."""

    FULL = "full logits"
    CHUNKED = "chunked"
    """Head and cross-entropy in chunks of the stack's size; the logits of one chunk are alive."""
    FUSED = "fused"
    """One kernel for head and cross-entropy (Liger, cut cross-entropy): no logits are kept."""


class TeacherHeld(StrEnum):
    """Where a distillation teacher's knowledge is while the student learns."""

    RESIDENT = "resident"
    """Its 16-bit weights on the same device."""
    PACKED = "4-bit"
    OFFLOADED = "offloaded"
    """Weights in host RAM, streamed to the device layer by layer."""
    CACHED = "cached logits"
    """Its top logits were written to disk before; no weights at all."""
    SHARED = "shared"
    """It is the frozen part of the student itself, asked with the adapter switched off."""


@dataclass(frozen=True, slots=True)
class OwnAnswers:
    """A student that learns on answers of its own, which it writes before such a step."""

    share: float
    """Of the steps."""
    tokens: int
    """New ones of an answer at most."""
    joined: bool = False
    """Rows share sequences: a step has more prompts than sequences."""


class DeviceKind(StrEnum):
    GPU = "gpu"
    CPU = "cpu"


_LIMITS = {
    "batch": (1, 4096),
    "sequence": (1, 1 << 24),
    "rank": (1, 65_536),
    "shards": (1, 65_536),
    "replicas": (1, 65_536),
    "nodes": (1, 65_536),
    "accumulation": (1, 1 << 20),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """One job as the formulas see it. Raises EngineError `estimate.value` or `estimate.conflict`."""

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
    attention: Attention = Attention.SDPA
    loss: Loss = Loss.FULL
    trained_share: float = 1.0
    """Share of the positions that carry loss; our worker computes logits for no others."""
    accumulation: int = 1
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    foreach: bool = False
    """Whether the optimizer step makes one more copy (torch's `foreach`; `fused` does not)."""
    step_in_backward: bool = False
    """Each parameter is updated as soon as its gradient is known: gradients never coexist."""
    optimizer_on_host: bool = False
    """Optimizer states and gradients live in host RAM."""
    measured_tokens: int = 0
    """Longest text that is measured before and after training, with a key-value cache; 0: none beyond `sequence`."""
    trained_layers: int = 0
    compute_bytes: int = 2
    """2 for bf16/fp16, 4 for fp32."""
    adapter_bytes: int = 4
    """PEFT keeps adapters in fp32 unless told otherwise."""
    dora: bool = False
    dropout: bool = False
    """Adapters drop inputs: one more copy and a mask per adapter."""
    train_embeddings: bool = False
    """Embeddings and output head learn beside the adapter (PEFT's `modules_to_save`)."""
    train_norms: bool = False
    """Norms learn beside the adapter, the same way."""
    offload_activations: bool = False
    """What layers keep for the backward pass waits in host RAM."""
    shards: int = 1
    """Cards over which ZeRO-3/FSDP divides the state."""
    replicas: int = 1
    """Cards with a whole copy of the job each (data parallel); each computes its own micro-batches."""
    nodes: int = 1
    """Machines that these cards are in: what passes between cards then passes a network."""
    teacher: Architecture | None = None
    """A frozen teacher (distillation)."""
    teacher_held: TeacherHeld = TeacherHeld.PACKED
    teacher_top_k: int = 0
    """Its most likely tokens that are kept where they are cached; 0: as many as when nothing is said."""
    own_answers: OwnAnswers | None = None
    purpose: Purpose = Purpose.TRAIN
    device: DeviceKind = DeviceKind.GPU
    workspace_bytes: int = 2 * 8_519_680
    """cuBLAS workspaces of the forward and the autograd thread."""
    capability: int = 0
    """Major compute capability of an NVIDIA card, 0 when unknown: newer ones load a larger CUDA context."""
    expandable_segments: bool = True
    """The worker starts with `expandable_segments:True`; foreign scripts mostly do not."""
    stack: Stack = OURS
    """Whose code trains, and of which year."""

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            _require(name, getattr(self, name), low, high)
        _require("tokens per micro-batch", self.batch * self.sequence, 1, MAX_TOKENS_PER_MICRO_BATCH)
        if not 0.0 < self.trained_share <= 1.0:
            raise EngineError(
                "estimate.value",
                f"trained_share is {self.trained_share}; it must be above 0 and at most 1.",
                next_step="Give the share of the tokens that carry loss.",
            )
        if self.method is Method.FULL and self.packing is not Packing4Bit.NONE:
            raise EngineError(
                "estimate.conflict",
                "Weights packed to 4 bits cannot be trained themselves.",
                cause="4-bit values have no usable gradient; only an adapter or new blocks beside them can learn.",
                next_step="Use QLoRA (an adapter on packed weights), or full training in bfloat16.",
            )

    @property
    def tokens(self) -> int:
        """T: tokens of one micro-batch."""
        return self.batch * self.sequence

    @property
    def cards(self) -> int:
        """All cards that work on the job."""
        return self.shards * self.replicas

    @property
    def packed(self) -> bool:
        """True when the frozen base is stored in 4 bits."""
        return self.packing is not Packing4Bit.NONE


def _require(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise EngineError(
            "estimate.value",
            f"{name} is {value:,}; it must be from {low:,} to {high:,}.",
            next_step=f"Choose a {name} in that range.",
        )
