"""Adapter folders: what is read, what is refused, and for which base they are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.adapters.base import check_base, read_base
from engine.adapters.folder import read_adapter
from engine.adapters.inspection import find_adapters, inspect_adapter
from engine.adapters.kinds import Start, parse_config
from engine.adapters.origin import ORIGIN, write_origin
from engine.adapters.tensors import read_float
from engine.errors import EngineError
from tests.support.adapter_files import (
    DOWN1,
    HIDDEN,
    Q0,
    Q1,
    VOCABULARY,
    factors,
    write_adapter,
    write_base,
    write_packed_base,
)


def config(**fields: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": 8, "lora_alpha": 16, **fields}


def refusal(folder: Path) -> EngineError:
    with pytest.raises(EngineError) as caught:
        read_adapter(folder)
    assert caught.value.cause
    assert caught.value.next_step
    return caught.value


# ── kinds ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "LoRA"),
        ({"use_rslora": True}, "rsLoRA"),
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa"}, "PiSSA"),
        ({"init_lora_weights": "pissa_niter_16"}, "PiSSA"),
        ({"init_lora_weights": "OLoRA"}, "OLoRA"),
        ({"use_dora": True, "init_lora_weights": "pissa"}, "DoRA from PiSSA"),
        ({"init_lora_weights": "eva"}, "LoRA"),
    ],
)
def test_a_config_says_what_an_adapter_is(fields: dict[str, Any], kind: str) -> None:
    found = parse_config(config(**fields), "x")
    assert found.kind == kind
    assert found.start_drawn == ("niter" in str(fields))


def test_scales_follow_patterns_as_peft_matches_them() -> None:
    found = parse_config(
        config(rank_pattern={"q_proj": 4, "layers.1.self_attn.v_proj": 2}, alpha_pattern={"^model.layers.0.*": 5}), "x"
    )
    assert found.rank_of("model.layers.7.self_attn.q_proj") == 4
    assert found.rank_of("model.layers.1.self_attn.v_proj") == 2
    assert found.rank_of("model.layers.11.self_attn.v_proj") == 8
    assert found.rank_of("model.layers.7.self_attn.qq_proj") == 8, "an end of a name begins after a dot"
    assert found.scale_of("model.layers.0.self_attn.q_proj") == 5 / 4
    assert found.scale_of("model.layers.7.self_attn.q_proj") == 4
    rooted = parse_config(config(use_rslora=True, rank_pattern={"q_proj": 4}), "x")
    assert rooted.scale_of("a.q_proj") == 8
    assert rooted.scale_of("a.k_proj") == 16 / math.sqrt(8)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "XLORA"}, "XLORA"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "parameters"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "repeats layers"),
        ({"init_lora_weights": "corda"}, "CorDA"),
        ({"init_lora_weights": "loftq"}, "LoftQ"),
        ({"init_lora_weights": "lora_ga"}, "LoRA-GA"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"arrow_config": {"top_k": 2}}, "Arrow"),
    ],
)
def test_what_is_no_update_of_matrices_is_refused_by_name(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(EngineError) as caught:
        parse_config(config(**fields), "here")
    assert caught.value.code == "adapter.kind"
    assert word in caught.value.cause
    assert caught.value.next_step


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 0}, {"r": "8"}, {"r": 1.5}, {"lora_alpha": "x"}, {"rank_pattern": {"(": 4}}, {"rank_pattern": {"q": -1}},
        {"use_dora": "yes"}, {"bias": "some"}, {"trainable_token_indices": [-1]}, {"modules_to_save": [1]},
        {"alpha_pattern": [1]},
    ],
)  # fmt: skip
def test_impossible_values_are_refused_with_their_key(fields: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=next(iter(fields))) as caught:
        parse_config(config(**fields), "here")
    assert caught.value.code == "adapter.config"


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_everything_in_a_folder_is_found(tmp_path: Path) -> None:
    embedded = {
        "model.embed_tokens.lora_embedding_A": np.zeros((2, VOCABULARY)),
        "model.embed_tokens.lora_embedding_B": np.zeros((HIDDEN, 2)),
        "lm_head.weight": np.ones((VOCABULARY, HIDDEN)),
        f"{Q1}.base_layer.bias": np.ones(HIDDEN),
        "model.other.token_adapter.trainable_tokens_delta": np.ones((2, HIDDEN)),
    }
    folder = write_adapter(
        tmp_path / "a", {**factors(Q1, 2, seed=0), **factors(Q0, 2, seed=1), **embedded},
        trainable_token_indices={"other": [3, 5]},
    )  # fmt: skip
    found = read_adapter(folder)
    assert [one.module for one in found.adapted] == ["model.embed_tokens", Q0, Q1]
    table = found.adapted[0]
    assert (table.embedding, table.outputs, table.inputs, table.stored_shape) == (
        True, HIDDEN, VOCABULARY, (VOCABULARY, HIDDEN),
    )  # fmt: skip
    assert [one.name for one in found.whole] == ["lm_head.weight", f"{Q1}.bias"]
    assert found.rows[0].indices == (3, 5)
    assert found.parameters == sum(tensor.elements for tensor in found.tensors)
    assert found.size_bytes == 4 * found.parameters


def test_an_adapter_in_a_pickle_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", factors(Q0, 2, seed=0))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    error = refusal(folder)
    assert error.code == "adapter.pickle"
    assert "run any code" in error.cause
    (folder / "adapter_model.bin").unlink()
    assert refusal(folder).code == "adapter.no_weights"
    (folder / "adapter_config.json").unlink()
    assert refusal(folder).code == "adapter.config"
    assert refusal(tmp_path / "nowhere").code == "adapter.config"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{Q0}.lora_B.weight"), "only one of its two factors"),
        (lambda t: t.update({f"{Q0}.lora_B.weight": np.zeros((HIDDEN, 3))}), "rank 2"),
        (lambda t: t.update({f"{Q0}.lora_E": np.zeros(2)}), "do not have"),
        (lambda t: t.update({f"{Q0}.lora_B.bias": np.zeros(3)}), "for 12 outputs"),
        (lambda t: t.clear(), "no tensors"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_damage(tmp_path: Path, change: Any, words: str) -> None:
    tensors = factors(Q0, 2, seed=0)
    change(tensors)
    error = refusal(write_adapter(tmp_path / "a", tensors))
    assert (error.code, words in error.what) == ("adapter.damaged", True)


def test_a_dora_adapter_without_magnitudes_and_a_convolution_are_refused(tmp_path: Path) -> None:
    assert "magnitudes" in refusal(write_adapter(tmp_path / "a", factors(Q0, 2, seed=0), use_dora=True)).what
    deep = {"conv.lora_A.weight": np.zeros((2, 3, 3, 3)), "conv.lora_B.weight": np.zeros((4, 2, 1, 1))}
    assert refusal(write_adapter(tmp_path / "b", deep)).code == "adapter.kind"


def test_numbers_that_are_not_finite_are_refused_when_they_are_read(tmp_path: Path) -> None:
    tensors = factors(Q0, 2, seed=0)
    tensors[f"{Q0}.lora_A.weight"][1, 1] = np.nan
    found = read_adapter(write_adapter(tmp_path / "a", tensors))
    with pytest.raises(EngineError, match="NaN") as caught:
        read_float(found.adapted[0].a)
    assert caught.value.code == "adapter.not_finite"


# ── bases ────────────────────────────────────────────────────────────────────────────────────────────────────────
def foreign(adapter: Path, base: Path) -> EngineError:
    with pytest.raises(EngineError) as caught:
        check_base(read_adapter(adapter), base)
    assert caught.value.code == "adapter.other_base"
    assert caught.value.next_step
    return caught.value


def test_an_adapter_for_other_shapes_is_refused_with_module_and_shapes(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    check_base(read_adapter(write_adapter(tmp_path / "good", factors(Q0, 2, seed=0))), tmp_path / "base")
    wide = {f"{Q0}.lora_A.weight": np.zeros((2, 99)), f"{Q0}.lora_B.weight": np.zeros((HIDDEN, 2))}
    error = foreign(write_adapter(tmp_path / "a", wide, base=tmp_path / "elsewhere"), tmp_path / "base")
    assert Q0 in error.what
    assert "(12, 99)" in error.cause
    assert "(12, 12)" in error.cause
    assert "elsewhere" in error.next_step
    missing = {name.replace("layers.1", "layers.9"): values for name, values in factors(DOWN1, 2, seed=0).items()}
    assert "no such module" in foreign(write_adapter(tmp_path / "b", missing), tmp_path / "base").cause
    rows = {"model.embed_tokens.token_adapter.trainable_tokens_delta": np.ones((1, HIDDEN))}
    beyond = write_adapter(tmp_path / "c", rows, trainable_token_indices=[VOCABULARY])
    assert "row 16" in foreign(beyond, tmp_path / "base").cause


def test_other_weights_of_the_same_shapes_are_told_by_their_fingerprint(tmp_path: Path) -> None:
    write_base(tmp_path / "base", seed=0)
    write_base(tmp_path / "other", seed=1)
    adapter = write_adapter(tmp_path / "a", factors(Q0, 2, seed=0))
    write_origin(adapter, tmp_path / "base", name="my/base", revision="abc")
    check_base(read_adapter(adapter), tmp_path / "base")
    error = foreign(adapter, tmp_path / "other")
    assert "my/base" in error.cause
    assert ORIGIN in error.next_step
    (adapter / ORIGIN).unlink()
    check_base(read_adapter(adapter), tmp_path / "other")


def test_a_base_stored_in_4_bits_is_told_by_how_many_numbers_it_has(tmp_path: Path) -> None:
    write_packed_base(tmp_path / "packed")
    parts = {**factors(Q0, 2, seed=0), **factors(DOWN1, 2, seed=1)}
    adapter = write_adapter(tmp_path / "a", parts, tmp_path / "packed")
    write_origin(adapter, tmp_path / "packed", name="packed")
    check_base(read_adapter(adapter), tmp_path / "packed")
    report = inspect_adapter(read_adapter(adapter))
    assert report.belongs is True
    assert report.update_norm is not None
    assert report.per_matrix[0].relative_norm is None, "over packed numbers nothing can be said"
    wide = {f"{Q0}.lora_A.weight": np.zeros((2, HIDDEN + 4)), f"{Q0}.lora_B.weight": np.zeros((HIDDEN, 2))}
    error = foreign(write_adapter(tmp_path / "b", wide), tmp_path / "packed")
    assert "(12, 16)" in error.cause
    assert "144 numbers in 4 bits" in error.cause


def test_another_revision_in_the_hubs_cache_is_refused(tmp_path: Path) -> None:
    mine, wanted = "a" * 40, "b" * 40
    write_base(tmp_path / "snapshots" / mine)
    adapter = write_adapter(tmp_path / "a", factors(Q0, 2, seed=0), base_model_name_or_path="x/y", revision=wanted)
    error = foreign(adapter, tmp_path / "snapshots" / mine)
    assert wanted in error.next_step
    same = write_adapter(tmp_path / "b", factors(Q0, 2, seed=0), base_model_name_or_path="x/y", revision=mine)
    check_base(read_adapter(same), tmp_path / "snapshots" / mine)


def test_names_of_older_files_and_tied_heads_are_found(tmp_path: Path) -> None:
    write_base(tmp_path / "base", tied=True, drop=("lm_head.weight",))
    base = read_base(tmp_path / "base")
    assert base.tied
    head = base.find("lm_head.weight")
    assert head is not None
    assert head.name == "model.embed_tokens.weight"
    assert base.find("model.layers.5.self_attn.q_proj.weight") is None
    renamed = {name.removeprefix("model."): tensor for name, tensor in base.tensors.items()}
    found = type(base)(base.folder, renamed, base.tied).find(f"{Q0}.weight")
    assert found is not None
    assert found.name == f"{Q0}.weight"


# ── inspection ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_an_inspection_tells_kind_base_size_and_norms(tmp_path: Path) -> None:
    tensors = write_base(tmp_path / "base")
    parts = {**factors(Q0, 2, seed=0), **factors(DOWN1, 4, seed=1)}
    adapter = write_adapter(
        tmp_path / "a", parts, tmp_path / "base", rank_pattern={"down_proj": 4}, use_rslora=True, peft_version="0.21.2"
    )
    report = inspect_adapter(read_adapter(adapter))
    assert (report.kind, report.rank, report.ranks, report.matrices, report.layers) == ("rsLoRA", 4, (2, 4), 2, 2)
    assert report.modules == ("down_proj", "q_proj")
    assert report.belongs is True
    update = 4 / math.sqrt(2) * parts[f"{Q0}.lora_B.weight"] @ parts[f"{Q0}.lora_A.weight"]
    first = report.per_matrix[0]
    assert first.update_norm == pytest.approx(float(np.linalg.norm(update)), rel=1e-5)
    weight = float(np.linalg.norm(tensors[f"{Q0}.weight"]))
    assert first.relative_norm == pytest.approx(float(np.linalg.norm(update)) / weight, rel=1e-5)

    write_base(tmp_path / "other", seed=5)
    config_path = tmp_path / "other" / "config.json"
    config_path.write_text(json.dumps({**json.loads(config_path.read_text()), "hidden_size": 3}))
    write_origin(adapter, tmp_path / "base", name="my/base")
    other = inspect_adapter(read_adapter(adapter), tmp_path / "other")
    assert other.belongs is False
    assert "fingerprint" in other.why_not


def test_norms_of_dora_and_pissa_wait_for_the_base(tmp_path: Path) -> None:
    tensors = write_base(tmp_path / "base")
    parts = factors(Q0, 2, seed=0)
    magnitude = {f"{Q0}.lora_magnitude_vector": np.full(HIDDEN, 4.0)}
    adapter = write_adapter(tmp_path / "a", {**parts, **magnitude}, use_dora=True, init_lora_weights="pissa")
    alone = inspect_adapter(read_adapter(adapter))
    assert alone.belongs is None
    assert alone.per_matrix[0].update_norm is None
    assert alone.update_norm is None
    assert read_adapter(adapter).adapted[0].start is Start.PISSA
    found = inspect_adapter(read_adapter(adapter), tmp_path / "base").per_matrix[0]
    weight = tensors[f"{Q0}.weight"].astype(np.float64)
    u, values, vt = np.linalg.svd(weight)
    left = weight - (u[:, :2] * values[:2]) @ vt[:2] + 2 * parts[f"{Q0}.lora_B.weight"] @ parts[f"{Q0}.lora_A.weight"]
    changed = left * (4.0 / np.linalg.norm(left, axis=1))[:, None]
    assert found.update_norm == pytest.approx(float(np.linalg.norm(changed - weight)), rel=1e-4)


def test_adapters_are_found_in_folders_of_folders(tmp_path: Path) -> None:
    for place in ("a", "b/c", "d/e/f", "g/h/i/j"):
        write_adapter(tmp_path / place, factors(Q0, 2, seed=0))
    found = [path.relative_to(tmp_path).as_posix() for path in find_adapters([tmp_path])]
    assert found == ["a", "b/c", "d/e/f"]
