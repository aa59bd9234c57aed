"""Adapters as GGUF files read back: what llama.cpp would add to each weight is the adapter's update, in its order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from engine.errors import EngineError
from engine.export.gguf_adapter import write_gguf_adapter
from engine.export.gguf_weights import interleaved
from tests.support.adapter_files import write_adapter
from tests.support.gguf_models import HEAD, config_of, write_model

RANK, ALPHA = 2, 6


def factors(shapes: dict[str, tuple[int, int]], ranks: dict[str, int] | None = None) -> dict[str, Any]:
    """Random factors by module, whose shapes (O, I) are given."""
    draws, found = np.random.default_rng(5), {}
    for module, (outputs, inputs) in shapes.items():
        rank = (ranks or {}).get(module, RANK)
        found[f"{module}.lora_A.weight"] = draws.standard_normal((rank, inputs)).astype(np.float32)
        found[f"{module}.lora_B.weight"] = draws.standard_normal((outputs, rank)).astype(np.float32)
    return found


QUERY, KEY, DOWN = (f"model.layers.1.{part}" for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"))
SHAPES = {QUERY: (64, 64), KEY: (32, 64), DOWN: (64, 96)}


def update(tensors: dict[str, Any], module: str, scale: float) -> np.ndarray[Any, Any]:
    return scale * (tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"])


def same(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    """Up to the rounding of float32."""
    return found.shape == expected.shape and bool(np.abs(found - expected).max() < 1e-6 * np.abs(expected).max())


def carried(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Weight -> what llama.cpp adds to it: (alpha / r) b a."""
    reader = GGUFReader(path)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    held = {tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in reader.tensors}
    names = [name.removesuffix(".lora_a") for name in held if name.endswith(".lora_a")]
    found = {}
    for name in names:
        a, b = held[f"{name}.lora_a"], held[f"{name}.lora_b"]
        found[name] = alpha / b.shape[1] * (b @ (a.T if name.startswith("token_embd") else a))
    return found


def made(tmp_path: Path, tensors: dict[str, Any], kind: str = "llama", **config: Any) -> tuple[Path, Path]:
    """Adapter and base."""
    base = tmp_path / "base"
    changes = config.pop("base", {})
    write_model(base, config_of(kind, **changes))
    settings = {"r": RANK, "lora_alpha": ALPHA, **config}
    return write_adapter(tmp_path / "adapter", tensors, base, **settings), base


def test_an_adapter_says_what_it_is_and_adds_its_update_to_woven_rows(tmp_path: Path) -> None:
    tensors = factors(SHAPES)
    adapter, base = made(tmp_path, tensors)
    file = write_gguf_adapter(adapter, base, tmp_path / "adapter.gguf", name="mine")
    keys = {name: field.contents() for name, field in GGUFReader(file.path).fields.items()}
    assert [keys[key] for key in ("general.type", "adapter.type", "general.architecture", "general.name")] == [
        "adapter", "lora", "llama", "mine",
    ]  # fmt: skip
    assert (file.alpha, file.matrices, file.largest_rank, keys["adapter.lora.alpha"]) == (ALPHA, 3, RANK, ALPHA)
    added = carried(file.path)
    assert same(added["blk.1.ffn_down.weight"], update(tensors, DOWN, 3))
    assert same(added["blk.1.attn_q.weight"], interleaved(update(tensors, QUERY, 3), 4))
    assert same(added["blk.1.attn_k.weight"], interleaved(update(tensors, KEY, 3), 2))


def test_ranks_and_alphas_by_pattern_keep_their_scales(tmp_path: Path) -> None:
    tensors = factors(SHAPES, {QUERY: 8})
    adapter, base = made(
        tmp_path, tensors, "qwen2", rank_pattern={"q_proj": 8}, alpha_pattern={"down_proj": 50}, use_rslora=True
    )
    added = carried(write_gguf_adapter(adapter, base, tmp_path / "adapter.gguf").path)
    assert same(added["blk.1.attn_q.weight"], update(tensors, QUERY, ALPHA / 8**0.5))
    assert same(added["blk.1.attn_k.weight"], update(tensors, KEY, ALPHA / 2**0.5))
    assert same(added["blk.1.ffn_down.weight"], update(tensors, DOWN, 50 / 2**0.5))


def test_an_adapter_that_is_scaled_to_nothing_adds_nothing(tmp_path: Path) -> None:
    adapter, base = made(tmp_path, factors(SHAPES), "qwen2", lora_alpha=0)
    added = carried(write_gguf_adapter(adapter, base, tmp_path / "adapter.gguf").path)
    assert all(not values.any() for values in added.values())


def test_what_the_base_multiplies_the_adapter_multiplies(tmp_path: Path) -> None:
    tensors = factors(SHAPES)
    adapter, base = made(tmp_path, tensors, "gemma2", base={"query_pre_attn_scalar": 25})
    added = carried(write_gguf_adapter(adapter, base, tmp_path / "adapter.gguf").path)
    assert same(added["blk.1.attn_q.weight"], update(tensors, QUERY, 3) * (HEAD / 25) ** 0.5)
    assert same(added["blk.1.attn_k.weight"], update(tensors, KEY, 3))


def test_half_the_bytes_on_request_and_never_over_an_existing_file(tmp_path: Path) -> None:
    adapter, base = made(tmp_path, factors(SHAPES), "qwen2")
    steps: list[tuple[int, int]] = []
    large = write_gguf_adapter(adapter, base, tmp_path / "l.gguf", on_progress=lambda *step: steps.append(step))
    small = write_gguf_adapter(adapter, base, tmp_path / "s.gguf", stored="f16")
    assert steps[-1] == (4 * RANK * (128 + 96 + 160), 4 * RANK * (128 + 96 + 160))
    assert small.size_bytes < large.size_bytes
    with pytest.raises(EngineError) as refusal:
        write_gguf_adapter(adapter, base, tmp_path / "s.gguf")
    assert refusal.value.code == "export.exists"


def embedding(module: str = "model.embed_tokens") -> dict[str, Any]:
    draws = np.random.default_rng(7)
    return {
        f"{module}.lora_embedding_A": draws.standard_normal((RANK, 1220)).astype(np.float32),
        f"{module}.lora_embedding_B": draws.standard_normal((64, RANK)).astype(np.float32),
    }


def test_an_embedding_is_updated_the_other_way_round(tmp_path: Path) -> None:
    tensors = factors(SHAPES) | embedding()
    adapter, base = made(tmp_path, tensors, "qwen2")
    added = carried(write_gguf_adapter(adapter, base, tmp_path / "adapter.gguf").path)
    b, a = tensors["model.embed_tokens.lora_embedding_B"], tensors["model.embed_tokens.lora_embedding_A"]
    assert same(added["token_embd.weight"], 3 * (b @ a))


MAGNITUDE = {f"{QUERY}.lora_magnitude_vector": np.ones(64, np.float32)}
BIAS = {f"{QUERY}.lora_B.bias": np.ones(64, np.float32)}


@pytest.mark.parametrize(
    ("more", "config", "code"),
    [
        (MAGNITUDE | {f"{name}.lora_magnitude_vector": np.ones(SHAPES[name][0]) for name in (KEY, DOWN)},
         {"use_dora": True}, "dora"),
        (BIAS, {"lora_bias": True}, "bias"),
        ({"lm_head.weight": np.ones((1220, 64), np.float32)}, {"modules_to_save": ["lm_head"]}, "whole"),
        (embedding(), {"base": {"tie_word_embeddings": True}}, "tied"),
    ],
    ids=["DoRA", "bias", "modules_to_save", "tied embedding"],
)  # fmt: skip
def test_what_is_no_update_of_one_matrix_is_refused_with_merging_as_the_way_out(
    more: dict[str, Any], config: dict[str, Any], code: str, tmp_path: Path
) -> None:
    adapter, base = made(tmp_path, factors(SHAPES) | more, **config)
    with pytest.raises(EngineError) as refusal:
        write_gguf_adapter(adapter, base, tmp_path / "adapter.gguf")
    assert refusal.value.code == f"export.adapter_{code}"
    assert "merge" in refusal.value.next_step
    assert not (tmp_path / "adapter.gguf").exists()


def test_the_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    adapter, _ = made(tmp_path, factors(SHAPES), "qwen2")
    write_model(tmp_path / "other", config_of("qwen2", intermediate_size=128))
    with pytest.raises(EngineError) as refusal:
        write_gguf_adapter(adapter, tmp_path / "other", tmp_path / "adapter.gguf")
    assert refusal.value.code == "adapter.other_base"
