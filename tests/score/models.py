"""Finds the architecture that a row's model name means: the shipped catalogue first, else `score_models.toml`.

Owns how names are read. Must not know frameworks or methods. Nothing is fetched.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from engine.models.analyze import analyze
from engine.models.architecture import Architecture, Moe, Rope
from engine.models.model_profiles import find_model_profile, load_model_profiles

SHAPES = Path(__file__).parents[1] / "data" / "score_models.toml"

_ENCODER_DECODER = re.compile(r"\b(mt0|t0|t5|flan|ul2|bart|whisper)\b|t0-|t0_|mt0|flan")
_TRAILING = re.compile(
    r"[-.](chat|instruct|inst|it|pt|base|hf|gptq|awq|hqq|bnb|int4|int8|4bit|8bit|nf4|fp16|bf16|fp8|beta|python|config"
    r"|model|sft|dpo|\d+k|v\d+(\.\d+)?|pre|training|pretraining|pretrain|shape|shapes|\d{4}|preview|latest|aqlm)$"
)


class UnknownModel(Exception):
    """The name means no shape that is known here."""


def architecture_of(name: str, published_b: float | None = None) -> Architecture:
    """The architecture behind a published name. Raises UnknownModel with the reason.

    A name without its size ("phi-3") is completed by `published_b`, the stated parameters in billions.
    """
    plain = _plain(name)
    if not plain:
        raise UnknownModel("no model named")
    if _ENCODER_DECODER.search(plain):
        raise UnknownModel(f"{name}: encoder-decoder, the formulas describe decoders only")
    for candidate in _candidates(plain):
        profile = find_model_profile(candidate)
        if profile is not None:
            return analyze(profile.id, offline=True)
        if candidate in _shapes():
            return _architecture(candidate, _shapes()[candidate])
    found = _of_family_and_size(plain, published_b) if published_b else None
    if found is None:
        raise UnknownModel(f"{name}: shape not known")
    return found


def _of_family_and_size(plain: str, published_b: float) -> Architecture | None:
    """The shape whose name starts alike and whose size is within 2 % of what is stated; None unless it is one."""
    start = re.match(r"[a-z]+", plain)
    if start is None:
        return None
    return _starting_with(plain, published_b) or _starting_with(start[0], published_b)


def _starting_with(start: str, published_b: float) -> Architecture | None:
    found: dict[tuple[int, ...], Architecture] = {}
    for profile in load_model_profiles():
        if profile.id.startswith(start) and abs(profile.parameters / 1e9 / published_b - 1) <= 0.02:
            known = analyze(profile.id, offline=True)
            found[_widths(known)] = known
    for name, entry in _shapes().items():
        if name.startswith(start) and abs(entry["published_b"] / published_b - 1) <= 0.02:
            known = _architecture(name, entry)
            found.setdefault(_widths(known), known)
    return next(iter(found.values())) if len(found) == 1 else None


def _widths(known: Architecture) -> tuple[int, ...]:
    return known.layers, known.hidden_size, known.intermediate_size, known.vocab_size


def _plain(name: str) -> str:
    """ "meta-llama/Llama 2 7B (chat)" -> "llama-2-7b"."""
    text = re.sub(r"\([^)]*\)", " ", name.strip().lower()).rpartition("/")[2].strip()
    text = re.sub(r"(?<=\d)_(?=\d)", ".", text)
    text = re.sub(r"[\s_]+", "-", text)
    text = re.sub(r"^(meta|nvidia|microsoft|google|unsloth|h2oai)-", "", text)
    text = re.sub(r"^(code-?)?llama-?(\d)(\.\d)?-?(?=\d|[a-z]|$)", _llama, text)
    text = re.sub(r"^qwen1half", "qwen1.5", text)
    text = re.sub(r"^qwen1\.0", "qwen", text)
    text = re.sub(r"^tiny-?llama(?=$|-)", "tinyllama", text)
    text = re.sub(r"^tinyllama$", "tinyllama-1.1b", text)
    return re.sub(r"-+", "-", text).strip("-")


def _llama(match: re.Match[str]) -> str:
    """ "llama2-", "llama-2-" and "llama2" alike; "llama-7b" is no generation 7."""
    rest = match.string[match.end(2) :]
    if re.match(r"\d*b\b|\d", rest):
        return match.group(0)
    return f"{match.group(1) or ''}llama-{match.group(2)}{match.group(3) or ''}-"


def _candidates(plain: str) -> list[str]:
    """The name, and the name with one trailing word after another taken off."""
    found = [plain]
    while (shorter := _TRAILING.sub("", found[-1])) != found[-1]:
        found.append(shorter)
    return found


@cache
def _shapes() -> dict[str, dict[str, Any]]:
    with SHAPES.open("rb") as file:
        entries = tomllib.load(file)["model"]
    return {name: entry for entry in entries for name in entry["names"]}


def known_shapes() -> tuple[tuple[Architecture, float], ...]:
    """Every shape of the file with its published size in billions, for the test that compares them."""
    names = {entry["names"][0]: entry for entry in _shapes().values()}
    return tuple((_architecture(name, entry), float(entry["published_b"])) for name, entry in names.items())


def _architecture(name: str, entry: dict[str, Any]) -> Architecture:
    bias = entry.get("bias", "none")
    head_dim = entry.get("head_dim", entry["hidden"] // entry["heads"])
    moe = None
    if "experts" in entry:
        moe = Moe(
            experts=entry["experts"],
            experts_per_token=entry["experts_per_token"],
            expert_intermediate_size=entry["expert_ffn"],
            shared_intermediate_size=entry.get("shared_ffn", 0),
            moe_layers=entry["layers"] - entry.get("dense_layers", 0),
        )
    bare = Architecture(
        name=name,
        architecture="published shape",
        family=entry.get("family", name.partition("-")[0]),
        known=True,
        parameters=0,
        parameters_source="config",
        layers=entry["layers"],
        hidden_size=entry["hidden"],
        intermediate_size=entry["ffn"],
        attention_heads=entry["heads"],
        key_value_heads=entry["kv_heads"],
        head_dim=head_dim,
        vocab_size=entry["vocabulary"],
        tied_embeddings=entry.get("tied", False),
        context_length=entry.get("positions", 4096),
        norm=entry.get("norm", "rmsnorm"),
        norm_placement=entry.get("placement", "pre"),
        qk_norm="none",
        attention_bias=bias in ("qkv", "attention", "all"),
        mlp_bias=bias in ("mlp", "all"),
        mlp_kind="gated" if entry.get("gated", True) else "plain",
        rope=Rope("default", 10_000.0, 4096),
        moe=moe,
    )
    return _counted(bare, entry)


def _counted(bare: Architecture, entry: dict[str, Any]) -> Architecture:
    """Weights, embeddings, norms and biases added up."""
    per_norm = bare.hidden_size * (2 if bare.norm == "layernorm" else 1)
    norms = per_norm * (entry.get("norms_per_layer", 2) * bare.layers + 1)
    query, key_value = bare.attention_heads * bare.head_dim, bare.key_value_heads * bare.head_dim
    biases = 0
    if bare.attention_bias:
        biases += query + 2 * key_value + (bare.hidden_size if entry["bias"] in ("attention", "all") else 0)
    if bare.mlp_bias:
        biases += bare.intermediate_size + bare.hidden_size
    positions = entry.get("positions", 0) * bare.hidden_size
    total = bare.linear_parameters + bare.embedding_parameters + positions + norms + biases * bare.layers
    return replace(bare, parameters=total)
