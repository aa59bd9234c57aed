"""Which models can be given a longer window at all, and what to do with those that cannot.

Owns the refusals by kind of position and of attention. Must not know methods.
"""

from __future__ import annotations

from engine.errors import EngineError
from engine.models.config import ConfigReader
from engine.models.families import Family

_LEARNED = ("gpt2", "openai-gpt", "gpt_neo", "gpt_bigcode", "opt", "biogpt", "xglm", "ctrl", "bart", "codegen_learned")
_ALIBI = ("bloom", "mpt", "jais", "baichuan_alibi")
_RECURRENT = ("mamba", "mamba2", "rwkv", "falcon_mamba", "xlstm")
_FIXED_TABLE = ("gptj", "codegen")
_LOCAL_ONLY = ("cohere2", "exaone4", "llama4", "llama4_text")
_ROTARY_KEYS = (
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "rotary_emb_base",
    "rotary_pct",
    "partial_rotary_factor",
)
_OWN_HEAD_KEYS = ("kv_channels", "attention_head_dim", "global_head_dim")
_BASE_ONLY = ("phimoe",)
_HONOUR_PARTIAL = ("phi", "phi3", "stablelm", "gpt_neox", "glm4")
"""Families whose unscaled embedding rotates a share of the head; others' would ignore the key until scaled."""

_ANOTHER = "Take a model with rotary positions (Llama, Mistral, Qwen, Gemma, Phi, OLMo, SmolLM, ...)."


def refuse_other_positions(reader: ConfigReader, family: Family) -> None:
    """Raises EngineError `context.*` where scaling rotary frequencies cannot make the window longer."""
    kind = reader.text("model_type")
    if reader.flag("alibi") or kind in _ALIBI:
        raise _not_rotary(
            kind,
            "Its positions are ALiBi biases: a penalty that grows with distance, without frequencies to scale.",
            "It can be run on longer input as it is; measure how far with scaler-wizard eval. Or: " + _ANOTHER,
        )
    if kind in _LEARNED:
        raise _not_rotary(kind, "It looks positions up in a trained table that ends at its window.", _ANOTHER)
    if kind in _RECURRENT:
        raise _not_rotary(kind, "It is recurrent and has no position embedding; its state has no window.", _ANOTHER)
    if kind in _FIXED_TABLE:
        raise _not_rotary(
            kind, "transformers builds its rotary table from fixed constants, so that no config changes it.", _ANOTHER
        )
    if reader.has("kv_lora_rank") or reader.has("qk_rope_head_dim"):
        raise EngineError(
            "context.latent_attention",
            f"The window of {kind or 'this model'} cannot be extended: it uses latent attention (MLA).",
            cause="Only a part of each head, of its own size, is rotated, and its scaling also changes the softmax.",
            next_step="Use the publisher's long version. " + _ANOTHER,
        )
    if kind in _LOCAL_ONLY:
        raise refuse_local(kind)
    refuse_unread_heads(reader, family)
    if not family.known and not reader.has(*_ROTARY_KEYS):
        raise _not_rotary(kind, "Its config has no rotary settings (rope_parameters, rope_theta).", _ANOTHER)


def refuse_unread_heads(reader: ConfigReader, family: Family) -> None:
    """Raises EngineError where an unknown family keeps the size of its rotated heads under a key of its own."""
    own = next((key for key in _OWN_HEAD_KEYS if reader.has(key)), "")
    if own and not family.known:
        raise EngineError(
            "context.head_dim",
            f"The config sizes attention heads by '{own}', which is not read here.",
            cause="The number of rotated pairs cannot be told from it with certainty.",
            next_step=_ANOTHER,
        )


def refuse_type(model_type: str, kind: str) -> None:
    """Raises EngineError where the family's class has no such rotary type and none that could carry it."""
    if model_type in _BASE_ONLY and kind != "default":
        raise EngineError(
            "context.rope_type",
            f"{model_type} models cannot be given the rotary type {kind}.",
            cause="Their class takes longrope alone, with two factors on cos and sin of its own.",
            next_step="Take ntk, ntk-critical or abf, which change the base and nothing else.",
        )


def refuse_local(kind: str) -> EngineError:
    """Rotary positions in layers of limited reach only; the caller raises it."""
    return EngineError(
        "context.local_rotary",
        f"There is nothing to scale in {kind or 'this model'}: layers over the whole text have no rotary positions.",
        cause="Only layers that see a limited window are rotated, and distances in them do not grow with the text.",
        next_step="Raise max_position_embeddings alone and measure with scaler-wizard eval.",
    )


def refuse_partial(family: Family, share: float) -> None:
    """Raises EngineError where the family ignores a rotated share until it is scaled."""
    if share < 1 and family.known and family.name not in _HONOUR_PARTIAL:
        raise EngineError(
            "context.partial_rotary",
            f"The config rotates {share:.0%} of each head, which {family.name} models do only once they are scaled.",
            cause="transformers' class ignores partial_rotary_factor in type default and honours it in the others.",
            next_step="Remove partial_rotary_factor from config.json if the model was trained without it.",
        )


def _not_rotary(kind: str, cause: str, next_step: str) -> EngineError:
    return EngineError(
        "context.not_rotary",
        f"The window of {kind or 'this model'} cannot be extended: it has no rotary positions to scale.",
        cause=cause,
        next_step=next_step,
    )
