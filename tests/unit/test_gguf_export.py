"""What a GGUF file says about a scaling: divisors equal to the method's, and a refusal where they would be lost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.context.export import config_after
from engine.context.gguf_graphs import GRAPHS
from engine.context.gguf_rope import Divisors, GgufRope, rope_for_gguf
from engine.context.method import Options
from engine.context.methods import METHODS
from engine.context.planner import plan_context
from engine.errors import EngineError
from engine.export.gguf_tokenizer import SPLITS, splitting_rule, tokenizer_for_gguf
from engine.export.gguf_weights import gguf_name, interleaved
from engine.resources import demo_model_dir

DEMO = json.loads((demo_model_dir() / "config.json").read_text())
FOUND = tuple(1 + pair / 5 for pair in range(16))
TARGET = 1024


def options_for(method: str) -> Options:
    return Options(long_divisors=FOUND) if METHODS[method].needs_search else Options()


def rope(method: str, options: Options | None = None, *, model_type: str = "llama") -> GgufRope:
    config = DEMO | {"model_type": model_type}
    after = config_after(config, plan_context(config, TARGET, method, options or options_for(method)))
    return rope_for_gguf(after, GRAPHS[model_type].divisors)


def carried(found: GgufRope) -> tuple[list[float], float]:
    """Divisors from the model's own base, and m, as llama.cpp would apply them: its loader's and graph's arithmetic."""
    base = [math.pow(found.theta / DEMO["rope_parameters"]["rope_theta"], 2 * pair / found.dim) for pair in range(16)]
    tensors = dict(found.tensors)
    divisors = tensors.get("rope_freqs") or tensors.get("rope_factors_long") or (1.0,) * 16
    if found.kind == "linear":
        divisors = (found.factor,) * 16
    if found.kind != "yarn":
        return [one * other for one, other in zip(base, divisors, strict=True)], found.attn_factor
    ends = [
        found.dim * math.log(found.original / (turns * 2 * math.pi)) / (2 * math.log(found.theta)) for turns in (32, 1)
    ]
    low, high = max(0, math.floor(ends[0])), min(found.dim - 1, math.ceil(ends[1]))
    mixed = []
    for pair in range(16):
        kept = 1 - min(1.0, max(0.0, (pair - low) / max(0.001, high - low)))
        mixed.append(1 / ((1 - kept) / found.factor + kept))
    return mixed, found.attn_factor * (1 + 0.1 * math.log(found.factor))


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].exported])
def test_llama_cpp_is_given_the_divisors_and_the_m_of_the_method(method: str) -> None:
    plan = plan_context(DEMO, TARGET, method, options_for(method))
    divisors, m = carried(rope(method))
    assert divisors == pytest.approx(plan.scaled.scaling.divisors, rel=1e-6)
    assert m == pytest.approx(plan.scaled.scaling.attention_factor, rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [Options(attention_factor=1.5), Options(beta_fast=8.0), Options(beta_slow=3.0), Options(truncate=False)],
    ids=["own m", "own fast end", "own slow end", "ends not rounded"],
)
def test_a_yarn_of_its_own_keeps_its_divisors_and_m(options: Options) -> None:
    plan = plan_context(DEMO, TARGET, "yarn", options)
    divisors, m = carried(rope("yarn", options))
    assert divisors == pytest.approx(plan.scaled.scaling.divisors, rel=1e-6)
    assert m == pytest.approx(plan.scaled.scaling.attention_factor, rel=1e-6)


def test_two_sets_of_factors_travel_with_the_length_that_switches_them() -> None:
    found = rope("longrope", Options(long_divisors=FOUND, short_divisors=(1.0,) * 16))
    assert (found.kind, found.original) == ("longrope", 256)
    assert dict(found.tensors) == {"rope_factors_long": FOUND, "rope_factors_short": (1.0,) * 16}


@pytest.mark.parametrize("method", ["linear", "ntk", "ntk-critical", "abf", "yarn"])
def test_qwen_takes_what_needs_no_tensor(method: str) -> None:
    assert rope(method, model_type="qwen2") == rope(method)
    assert rope(method, model_type="qwen2").tensors == ()


@pytest.mark.parametrize(
    ("method", "options"),
    [("llama3", Options()), ("longrope", Options(long_divisors=FOUND)), ("yarn", Options(beta_fast=8.0))],
)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_qwen_refuses_what_its_graph_would_lose(method: str, options: Options, model_type: str) -> None:
    with pytest.raises(EngineError) as refusal:
        rope(method, options, model_type=model_type)
    assert refusal.value.code == "export.rope_lost"


def test_dynamic_is_refused() -> None:
    config = DEMO | {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}
    with pytest.raises(EngineError, match="Dynamic NTK cannot be written"):
        rope_for_gguf(config, Divisors.ONE_SET)


def test_rows_are_woven_so_that_neighbours_were_halves_apart() -> None:
    rows = np.arange(2 * 8).reshape(16, 1)
    woven = interleaved(rows, heads=2)[:, 0]
    assert woven.tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("model.layers.11.self_attn.q_proj.bias", "blk.11.attn_q.bias"),
        ("model.layers.0.self_attn.k_norm.weight", "blk.0.attn_k_norm.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.0.block_sparse_moe.gate.weight", ""),
    ],
)
def test_weights_are_named_as_llama_cpp_names_them(ours: str, theirs: str) -> None:
    assert gguf_name(ours, GRAPHS["llama"]) == theirs


def test_the_demo_tokenizer_is_carried_whole() -> None:
    found = tokenizer_for_gguf(demo_model_dir(), 1220)
    assert len(found.tokens) == len(found.types) == 1220
    special = found.special
    assert (found.model, found.splitting, found.adds_space) == ("gpt2", "smollm", None)
    assert (special.adds_bos, special.bos_id, special.eos_id, special.pad_id, special.stops) == (False, 1, 2, 0, (2,))
    assert found.types[:4] == (3, 3, 3, 3)
    assert found.types[1216:] == (5,) * 4


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


@pytest.mark.parametrize("whole_words", [False, True], ids=["merged", "whole words first"])
@pytest.mark.parametrize(
    ("regex", "names"), list(SPLITS.items()), ids=[names[0] or names[1] for names in SPLITS.values()]
)
def test_known_splitting_rules_have_their_names(regex: str, names: tuple[str, str], whole_words: bool) -> None:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    rule = {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}
    if names[whole_words]:
        assert splitting_rule(rule, ignore_merges=whole_words) == names[whole_words]
    else:
        with pytest.raises(EngineError, match="cannot be written"):
            splitting_rule(rule, ignore_merges=whole_words)


@pytest.mark.parametrize("rule", [None, {"type": "Whitespace"}, {"type": "Metaspace"}, BYTE_LEVEL])
def test_other_splitting_rules_are_refused(rule: Any) -> None:
    with pytest.raises(EngineError) as refusal:
        splitting_rule(rule)
    assert refusal.value.code == "export.tokenizer"


def test_models_of_other_families_and_existing_files_are_refused(tmp_path: Path) -> None:
    from engine.export.gguf import write_gguf

    (tmp_path / "taken.gguf").touch()
    with pytest.raises(EngineError, match="exists already"):
        write_gguf(demo_model_dir(), tmp_path / "taken.gguf")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(
        json.dumps(DEMO | {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]})
    )
    (other / "model.safetensors").symlink_to(demo_model_dir() / "model.safetensors")
    with pytest.raises(EngineError, match="not exported here"):
        write_gguf(other, tmp_path / "new.gguf")


def test_the_command_line_reports_a_refusal_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from engine.export.__main__ import main

    (tmp_path / "taken.gguf").touch()
    assert main([str(demo_model_dir()), str(tmp_path / "taken.gguf")]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "export.exists"
