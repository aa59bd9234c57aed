"""What each program makes of an extended folder: exact, approximate or lost, in one sentence with its condition.

Owns the facts about consumers: transformers 5 and 4.57, vLLM, llama.cpp with its converter. They were read in their
sources (transformers 5.23 and 4.57, vLLM of 2026-09, llama.cpp of 2026-10 as in llama-cpp-python 0.3.36); they are
facts about readers of `config.json`, so what counts is what the config says, not how it came about.
Must not know torch, nor decide what is done about a loss (`engine.extension`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from engine.context.export import config_after
from engine.context.methods import METHODS
from engine.context.plan import ContextPlan
from engine.models.config import text_part

EXACT, APPROXIMATE, LOST = "exact", "approximate", "lost"
TRANSFORMERS_5, TRANSFORMERS_4, VLLM, LLAMA_CPP = "transformers 5", "transformers 4.57", "vLLM", "llama.cpp"
CONSUMERS = (TRANSFORMERS_5, TRANSFORMERS_4, VLLM, LLAMA_CPP)

_PHI = frozenset({"phi3", "phimoe", "phi4_multimodal"})
"""Their configs know longrope and no other scaling; they alone drop the KV cache when the factors change."""
_GGUF_READS_FACTORS = frozenset(
    {"llama", "mistral", "mixtral", "granite", "granitemoe", "phi3", "phimoe", "minicpm", "apertus", "arcee"}
)
"""Families whose graph in llama.cpp gives per-pair factors to the rotation; the others pass none."""
_GGUF_WRITES_LLAMA3 = frozenset({"llama", "mistral", "mixtral", "granite", "granitemoe", "apertus", "arcee"})
"""... and whose converter writes llama3's factors as a tensor."""
_GGUF_WRITES_LONGROPE = frozenset({"phi3", "phimoe", "minicpm"})
"""... and longrope's."""
_GGUF_READS_RAMP = frozenset({"ministral3", "mistral3"})
"""Loaders that read YaRN's beta_fast and beta_slow."""
_EXPORTED_HERE = frozenset({"llama", "mistral"})
"""Families whose divisors `engine.export` writes as a tensor."""
_WHOLE_HERE = frozenset({"gemma2", "phi3"})
"""Families whose base, scaling and m `engine.export` writes, where the converter forgets some."""
_OWN_M_HERE = _EXPORTED_HERE | {"qwen2", "qwen3"}
"""Families whose m `engine.export` writes as the GGUF's rope.scaling.attn_factor, made up for the loader's own."""
_GGUF_FORGETS = frozenset({"gemma", "gemma2", "gpt_neox", "falcon", "phi", "stablelm"})
"""Converters that write neither the base nor a scaling: the loader takes 10000 and none."""
_GGUF_BASE_ONLY = frozenset({"cohere", "cohere2", "phi3", "phimoe"})
"""Converters that write the base and no linear or YaRN scaling."""
_INTERLEAVED = frozenset({"glm", "glm4", "cohere", "cohere2", "gptj"})
"""Rotate neighbouring dimensions; vLLM's longrope refuses them."""
_NESTED_IN_VLLM = frozenset({"gemma3", "gemma3_text", "olmo3"})
_OLMO3 = "olmo3"
"""transformers reads its settings by layer type from 5.13 on, and vLLM from 0.27 on."""
_TOLERANCE = 1e-6


class Portability(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What one program makes of the folder."""

    consumer: str
    """One of `CONSUMERS`."""
    verdict: str
    """ "exact", "approximate" or "lost"."""
    why: str
    """One sentence, with the condition under which it holds."""
    silent: bool = False
    """Lost without an error there: the program computes something else."""


@dataclass(frozen=True, slots=True)
class _Written:
    """What a reader of the new config finds."""

    kind: str
    """ "base" (only the rotary base changed), "linear", "yarn", "llama3", "longrope"."""
    family: str
    """`model_type` of the language model."""
    factor: float
    original: int
    target: int
    m: float
    own_m: bool
    """m is not what the type's formula gives."""
    own_ramp: bool
    """YaRN's ramp ends elsewhere than at 32 and 1 rotations, or is not rounded to whole pairs."""
    switches: bool
    nested: bool
    """Keyed by layer type."""
    read_by_4: bool
    """The keys that transformers 4 reads are there."""
    own_local_base: bool
    """Sliding layers' base has a key of its own, as Gemma 3 has it in transformers 4."""
    three_fields: bool
    """`rope_scaling` is what Phi's config of transformers 4 accepts: type, short_factor and long_factor."""


def portability(config: Mapping[str, Any], plan: ContextPlan) -> tuple[Portability, ...]:
    """What each consumer makes of the model of `config` under `plan`, in the order of `CONSUMERS`. Raises EngineError
    `context.*` where the plan has no config."""
    method = METHODS[plan.method]
    if not method.exported:
        return tuple(
            Portability(consumer=name, verdict=LOST, why=f"No folder is written: {method.not_exported_reason}")
            for name in CONSUMERS
        )
    written = _written(config, plan)
    return (_transformers_5(written), _transformers_4(written), _vllm(written), _llama_cpp(written))


def _written(config: Mapping[str, Any], plan: ContextPlan) -> _Written:
    after, _ = text_part(config_after(config, plan))
    scaled = plan.scaled
    layer_type, m = scaled.rotary.layer_type, scaled.scaling.attention_factor
    everything = after.get("rope_parameters") or {}
    settings = everything.get(layer_type, everything) if layer_type else everything
    kind = settings.get("rope_type", "default")
    factor = float(settings.get("factor") or plan.factor)
    return _Written(
        kind="base" if kind == "default" else kind,
        family=str(after.get("model_type", "")),
        factor=factor,
        original=plan.original,
        target=plan.target,
        m=m,
        own_m=abs(m - _formula_m(kind, factor, plan)) > _TOLERANCE,
        own_ramp=_has_own_ramp(settings, after),
        switches=scaled.scaling.switches,
        nested=bool(layer_type),
        read_by_4="rope_theta" in after and (kind == "default" or bool(after.get("rope_scaling"))),
        own_local_base="rope_local_base_freq" in after,
        three_fields=set(after.get("rope_scaling") or ()) == {"type", "short_factor", "long_factor"},
    )


def _has_own_ramp(settings: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    ends = (float(settings.get("beta_fast") or 32), float(settings.get("beta_slow") or 1))
    everything = after.get("rope_parameters") or {}
    return ends != (32.0, 1.0) or settings.get("truncate", everything.get("truncate", True)) is False


def _formula_m(kind: str, factor: float, plan: ContextPlan) -> float:
    """m where the config says nothing: YaRN's 0.1 ln s + 1 (arXiv 2309.00071), LongRoPE's sqrt(1 + ln s / ln L) (arXiv
    2402.13753), else 1."""
    if kind == "yarn" and factor > 1:
        return 0.1 * math.log(factor) + 1
    if kind == "longrope" and plan.factor > 1:
        return math.sqrt(1 + math.log(plan.factor) / math.log(plan.original))
    return 1.0


# ── transformers ─────────────────────────────────────────────────────────────────────────────────────────────────
def _transformers_5(written: _Written) -> Portability:
    if written.family in _PHI and written.kind not in ("base", "longrope"):
        return _lost(TRANSFORMERS_5, f"Phi's config accepts longrope only and refuses {written.kind}.")
    if written.switches and written.family not in _PHI:
        return _approximate(
            TRANSFORMERS_5,
            f"Exact within one call; generation that crosses {written.original:,} tokens keeps keys of the short "
            "factors in its cache and goes wrong there, so start above it or compute without a cache.",
        )
    if written.family == _OLMO3:
        return _exact(TRANSFORMERS_5, "Read from rope_parameters; versions before 5.13 scale the sliding layers too.")
    return _exact(TRANSFORMERS_5, "Every setting is read from rope_parameters.")


def _transformers_4(written: _Written) -> Portability:
    if written.family in _PHI and written.kind != "base":
        return _phi_in_transformers_4(written)
    if not written.read_by_4:
        return _lost(
            TRANSFORMERS_4,
            "It reads rope_theta and rope_scaling, which cannot say this by layer type, and takes its defaults.",
            silent=True,
        )
    if written.switches and written.family not in _PHI:
        return _approximate(
            TRANSFORMERS_4,
            f"Exact within one call; generation that crosses {written.original:,} tokens with a cache goes wrong "
            "there, as in transformers 5.",
        )
    if written.kind == "base" and written.nested and not written.own_local_base:
        return _approximate(
            TRANSFORMERS_4, "It has one rope_theta for all layers, so that sliding layers get the new base too."
        )
    if written.kind == "base":
        return _exact(TRANSFORMERS_4, "It reads the new base from rope_theta.")
    if written.kind == "longrope":
        return _exact(
            TRANSFORMERS_4, "It reads the factors from rope_scaling and the old length beside it at the top level."
        )
    if written.kind == "yarn":
        return _exact(
            TRANSFORMERS_4,
            "It reads the copy in rope_scaling; 4.51 to 4.53 recompute the factor, alike, and older versions take the "
            "new window for the old one, so that their ramp is wrong without an error.",
        )
    return _exact(TRANSFORMERS_4, "It reads the copy in rope_scaling.")


def _phi_in_transformers_4(written: _Written) -> Portability:
    if written.kind != "longrope":
        return _lost(TRANSFORMERS_4, f"Phi's config accepts longrope only and refuses {written.kind}.")
    if not written.three_fields:
        return _lost(TRANSFORMERS_4, "Phi's config accepts rope_scaling with type, short_factor and long_factor only.")
    if written.own_m:
        return _approximate(TRANSFORMERS_4, f"Factors are read; m comes from its formula instead of {written.m:.4g}.")
    return _exact(TRANSFORMERS_4, "It reads both sets of factors, and computes m by the same formula.")


# ── vLLM ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def _vllm(written: _Written) -> Portability:
    if written.nested and written.family not in _NESTED_IN_VLLM:
        return _approximate(VLLM, f"Whether it reads settings by layer type for {written.family} was not seen.")
    if written.kind == "longrope":
        return _vllm_longrope(written)
    if written.kind == "yarn" and written.own_m:
        return _approximate(
            VLLM,
            f"Versions before 2026-09 drop attention_factor ({written.m:.4g}) and take 0.1 ln s + 1; newer ones read "
            "it.",
        )
    if written.kind == "linear":
        return _exact(
            VLLM,
            f"Frequencies are read; versions before 2026-09 announce {written.factor:g} times the length, so start "
            f"them with --max-model-len {written.target}.",
        )
    if written.family == _OLMO3:
        return _exact(VLLM, "Read by layer type from 0.27 on; older versions fail to load such a config.")
    return _exact(VLLM, "Base, factor and lengths are read as they are written.")


def _vllm_longrope(written: _Written) -> Portability:
    if written.family in _INTERLEAVED:
        return _lost(VLLM, f"Its longrope does not know the rotation of {written.family} and refuses the model.")
    if written.switches:
        return _approximate(
            VLLM,
            f"It picks one set of factors when it starts: the long one for every length with --max-model-len above "
            f"{written.original}, else the short one.",
        )
    if written.own_m:
        return _approximate(
            VLLM,
            f"Factors are read, but m comes from its formula, not from attention_factor ({written.m:.4g}).",
        )
    return _exact(VLLM, "Factors are read, and m is the one of its formula.")


# ── llama.cpp ────────────────────────────────────────────────────────────────────────────────────────────────────
def _llama_cpp(written: _Written) -> Portability:
    family, kind = written.family, written.kind
    if family in _GGUF_FORGETS:
        carried = family in _WHOLE_HERE and (kind in ("base", "linear") or (kind == "yarn" and not written.own_ramp))
        return _lost(
            LLAMA_CPP,
            f"Its converter writes neither base nor scaling for {family}: the GGUF keeps 10000 and no scaling"
            + ("; `scaler-wizard export gguf` writes both." if carried else "."),
            silent=True,
        )
    if kind == "base":
        return _exact(LLAMA_CPP, "The converter writes the new base, and every family's graph uses it.")
    if kind == "longrope":
        return _llama_cpp_longrope(written)
    if kind == "llama3":
        return _llama_cpp_llama3(written)
    if family in _GGUF_BASE_ONLY:
        return _lost(LLAMA_CPP, f"Its converter writes no {kind} scaling for {family}.", silent=True)
    if kind == "yarn" and written.own_ramp and family not in _GGUF_READS_RAMP:
        return _lost(
            LLAMA_CPP,
            "The loader computes YaRN's ramp from 32 to 1 rotations whatever the file says"
            + ("; `scaler-wizard export gguf` writes the divisors instead." if family in _EXPORTED_HERE else "."),
            silent=True,
        )
    if kind == "yarn" and written.own_m:
        return _approximate(
            LLAMA_CPP,
            f"Frequencies are kept, but the loader replaces m = {written.m:.4g} by 0.1 ln s + 1, unless the GGUF's "
            "rope.scaling.attn_factor makes up for it"
            + (", as `scaler-wizard export gguf` writes it." if family in _OWN_M_HERE else "."),
        )
    if kind in ("linear", "yarn"):
        return _exact(LLAMA_CPP, f"The converter writes {kind}, its factor and the old length.")
    return _lost(LLAMA_CPP, f"Its converter does not know rope type {kind}.", silent=True)


def _llama_cpp_llama3(written: _Written) -> Portability:
    if written.family in _GGUF_WRITES_LLAMA3:
        return _exact(LLAMA_CPP, "The converter writes the divisors as rope_freqs, which this family's graph reads.")
    if written.family == "smollm3":
        return _lost(LLAMA_CPP, "The converter writes rope_freqs for SmolLM3, and the loader refuses that tensor.")
    return _lost(
        LLAMA_CPP,
        f"llama3 scaling is written for the Llama class only; a GGUF of {written.family} has no scaling.",
        silent=True,
    )


def _llama_cpp_longrope(written: _Written) -> Portability:
    family = written.family
    if family not in _GGUF_READS_FACTORS:
        return _lost(
            LLAMA_CPP,
            f"The graph of {family} takes no per-pair factors; the converter drops them without an error.",
            silent=True,
        )
    if family not in _GGUF_WRITES_LONGROPE:
        return _lost(
            LLAMA_CPP,
            f"The converter writes the word longrope for {family} and drops the factors without an error; "
            + (
                "`scaler-wizard export gguf` writes them, and m."
                if family in _EXPORTED_HERE
                else "a GGUF patched with them (rope_freqs, or rope_factors_long and _short) works."
            ),
            silent=True,
        )
    if written.switches:
        return _approximate(
            LLAMA_CPP,
            f"Long or short factors are picked once, by whether the context asked for is above "
            f"{written.original:,} tokens.",
        )
    if written.own_m:
        return _approximate(
            LLAMA_CPP,
            f"Factors are kept; its converter recomputes m by formula instead of {written.m:.4g}"
            + ("; `scaler-wizard export gguf` writes it." if family in _WHOLE_HERE else "."),
        )
    return _exact(LLAMA_CPP, "The converter writes both sets of factors, and m by the same formula.")


def _exact(consumer: str, why: str) -> Portability:
    return Portability(consumer=consumer, verdict=EXACT, why=why)


def _approximate(consumer: str, why: str) -> Portability:
    return Portability(consumer=consumer, verdict=APPROXIMATE, why=why)


def _lost(consumer: str, why: str, *, silent: bool = False) -> Portability:
    return Portability(consumer=consumer, verdict=LOST, why=why, silent=silent)
