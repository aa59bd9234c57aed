"""A model's architecture as data: what `config.json` and the safetensors headers say.

Owns the vocabulary of the analyzer (`engine.models.analyze` fills it). Must not know torch, nor any machine.
Attribute names are the keys of `scaler-wizard inspect --json`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding as configured."""

    kind: str
    """ "default", "linear", "dynamic", "yarn", "llama3", "longrope", or "none"."""
    theta: float
    original_length: int
    """Context length before scaling; equals `context_length` when unscaled."""
    factor: float = 1.0
    partial_factor: float = 1.0
    """Share of each head's dimensions that is rotated."""
    local_theta: float | None = None
    """Base of the sliding-window layers where they have their own (Gemma 3)."""


@dataclass(frozen=True, slots=True)
class Moe:
    """Mixture-of-experts layout."""

    experts: int
    experts_per_token: int
    expert_intermediate_size: int
    shared_experts: int = 0
    shared_intermediate_size: int = 0
    moe_layers: int = 0
    """How many of the layers are mixture layers."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One causal language model's shape. Counts are exact where `parameters_source` is "headers"."""

    name: str
    """How the user called the model: a folder name, hub id or profile name."""
    architecture: str
    """The config's class, "LlamaForCausalLM"."""
    family: str
    """ "llama", "qwen3", ...; "unknown" when the analyzer does not know the family."""
    known: bool
    parameters: int
    parameters_source: str
    """ "headers" (exact), "config" (arithmetic) or "profile" (published)."""
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    context_length: int
    norm: str
    """ "rmsnorm", "layernorm"."""
    norm_placement: str
    """ "pre", "post", "sandwich", "parallel"."""
    qk_norm: str
    """ "none", "head" (over head_dim), "full" (over the whole projection)."""
    attention_bias: bool
    mlp_bias: bool
    mlp_kind: str
    """ "gated" (three matrices) or "plain" (two)."""
    rope: Rope
    moe: Moe | None = None
    sliding_window: int | None = None
    sliding_layers: int = 0
    """How many layers use the sliding window."""
    dtype: str = "bfloat16"
    weight_bytes: int = 0
    """Size of the checkpoint's tensors on disk; `2 * parameters` when only the config was seen."""
    source: str = ""
    """The folder, hub id or "profile" this was read from."""
    quantization: str = ""
    """How the stored weights are packed ("bitsandbytes 4-bit", "gptq 4-bit"); "" for plain weights."""
    notes: tuple[str, ...] = ()
    """What could not be determined, or does not add up, in sentences."""

    @property
    def embedding_parameters(self) -> int:
        """Embedding plus output head, counted once when tied."""
        return self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)

    @property
    def linear_parameters(self) -> int:
        """What 4-bit quantisation packs: everything but embeddings, head, norms and biases."""
        query = self.attention_heads * self.head_dim
        key_value = self.key_value_heads * self.head_dim
        attention = self.hidden_size * (query + 2 * key_value) + query * self.hidden_size
        matrices = 3 if self.mlp_kind == "gated" else 2
        dense = matrices * self.hidden_size * self.intermediate_size
        if self.moe is None:
            return self.layers * (attention + dense)
        moe = self.moe
        expert = matrices * self.hidden_size * moe.expert_intermediate_size
        shared = matrices * self.hidden_size * moe.shared_intermediate_size
        mixture = moe.experts * expert + shared + moe.experts * self.hidden_size
        return self.layers * attention + moe.moe_layers * mixture + (self.layers - moe.moe_layers) * dense

    @property
    def active_parameters(self) -> int:
        """Parameters one token passes through; all of them unless there are experts."""
        if self.moe is None:
            return self.parameters
        matrices = 3 if self.mlp_kind == "gated" else 2
        idle = self.moe.experts - min(self.moe.experts_per_token, self.moe.experts)
        return (
            self.parameters
            - self.moe.moe_layers * idle * matrices * self.hidden_size * self.moe.expert_intermediate_size
        )
