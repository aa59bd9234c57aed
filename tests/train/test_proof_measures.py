"""The proof as a whole: what is grown right passes, what is grown wrong does not, and the file says why."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import EngineError
from engine.expansion.certificate import Proof
from engine.expansion.checks import Wish
from engine.models.headers import read_headers
from engine.proof.opened import LOADING_OVERHEAD, WORKING_BYTES
from engine.proof.prove import ProofRequest, prove
from tests.support.proof_models import grown, saved

HYBRID = Wish(hidden=48, heads=6, kv_heads=3, ffn=144, layers=3)
WIDER = Wish(hidden=48, ffn=144)
TOKENS = 40
LEAST_MEMORY = 1

Pair = tuple[Path, Path]
Make = Callable[..., Pair]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Source and grown folder, each made once."""
    root = tmp_path_factory.mktemp("proof")
    done: dict[tuple[Any, ...], Pair] = {}

    def make(name: str, wish: Wish = HYBRID, dtype: torch.dtype = torch.float32) -> Pair:
        key = (name, wish, dtype)
        if key not in done:
            folder = root / str(len(done))
            folder.mkdir()
            source = saved(name, folder / "source", dtype)
            done[key] = source, grown(source, folder / "grown", wish)
        return done[key]

    return make


def measured(pair: Pair, **changes: Any) -> Proof:
    return prove(ProofRequest(*pair, **{"tokens": TOKENS, **changes}))


def damaged(pair: Pair, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Pair:
    """The grown model with changed weights."""
    shutil.copytree(pair[1], folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return pair[0], folder


@pytest.mark.parametrize(
    ("name", "wish"),
    [
        ("llama-tied", HYBRID),
        ("mixtral", HYBRID),
        pytest.param("llama", HYBRID, marks=pytest.mark.slow),
        pytest.param("qwen3", HYBRID, marks=pytest.mark.slow),
        pytest.param("phi3", HYBRID, marks=pytest.mark.slow),
        pytest.param("qwen3_moe", HYBRID, marks=pytest.mark.slow),
        pytest.param("gpt_neox", Wish(hidden=48, heads=6, ffn=224, layers=3), marks=pytest.mark.slow),
        pytest.param("gemma3", WIDER, marks=pytest.mark.slow),
        pytest.param("olmo2", WIDER, marks=pytest.mark.slow),
    ],
)
def test_an_exactly_grown_model_passes_in_memory_and_streamed_alike(made: Make, name: str, wish: Wish) -> None:
    whole = measured(made(name, wish))
    assert whole.passed, whole.reason
    assert whole.method == "whole"
    assert whole.float32 is not None
    assert whole.float32.max_rel_logit_diff <= 1e-5
    assert whole.float32.top1_agreement == 1.0
    assert whole.generation_identical
    assert whole.generation_tokens >= 64
    assert whole.reloaded
    assert whole.perplexity_after == pytest.approx(whole.perplexity_before, rel=1e-4)
    assert whole.liveness.alive, whole.liveness
    assert whole.liveness.twins == ()

    streamed = measured(made(name, wish), memory_bytes=LEAST_MEMORY)
    assert streamed.passed, streamed.reason
    assert streamed.method == "layer by layer"
    assert streamed.float32 is not None
    assert streamed.float32.max_abs_logit_diff == pytest.approx(whole.float32.max_abs_logit_diff, abs=2e-6)
    assert streamed.perplexity_before == pytest.approx(whole.perplexity_before, rel=1e-6)
    assert streamed.generation_identical
    assert streamed.liveness.alive, streamed.liveness
    assert streamed.liveness.twins == ()


@pytest.mark.parametrize("memory", [None, LEAST_MEMORY])
def test_one_scale_off_by_a_thousandth_fails(made: Make, tmp_path: Path, memory: int | None) -> None:
    def stretch(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"] *= 1.001

    proof = measured(damaged(made("llama"), tmp_path / "wrong", stretch), memory_bytes=memory)
    assert not proof.passed
    assert proof.float32 is not None
    assert proof.float32.max_rel_logit_diff > 1e-4
    assert "an exact operator may differ by 1e-04" in proof.reason


def test_rounding_in_storage_is_told_apart_from_a_wrong_weight(made: Make, tmp_path: Path) -> None:
    pair = made("gpt_neox", Wish(hidden=48, heads=6, ffn=224, layers=3), torch.bfloat16)
    proof = measured(pair)
    assert proof.passed, proof.reason
    assert proof.arithmetic is not None
    assert proof.float32 is not None
    assert proof.arithmetic.max_rel_logit_diff <= 1e-5 < proof.float32.max_rel_logit_diff
    assert proof.bfloat16_source is not None
    assert proof.bfloat16 is not None
    assert proof.float32.max_rel_logit_diff < proof.bfloat16_source.max_rel_logit_diff
    assert proof.bfloat16.mean_kl < 3 * proof.bfloat16_source.mean_kl

    def stretch(weights: dict[str, torch.Tensor]) -> None:
        weights["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"] *= 1.02

    wrong = measured(damaged(pair, tmp_path / "wrong", stretch))
    assert not wrong.passed
    assert "gpt_neox.layers.1.mlp.dense_4h_to_h.weight" in wrong.reason
    assert "not what the plan makes" in wrong.reason


def test_half_precision_matrices_that_only_moved_need_no_second_judgement(made: Make) -> None:
    proof = measured(made("llama", HYBRID, torch.bfloat16))
    assert proof.passed, proof.reason
    assert proof.arithmetic is None
    assert proof.float32 is not None
    assert proof.float32.max_rel_logit_diff <= 1e-5


def test_double_precision_sources_are_measured_in_double_precision(made: Make) -> None:
    proof = measured(made("gpt2", Wish(hidden=48, heads=6, ffn=224, layers=3), torch.float64))
    assert proof.passed, proof.reason
    assert proof.float32 is not None
    assert proof.float32.max_rel_logit_diff <= 1e-12


@pytest.mark.parametrize("memory", [None, LEAST_MEMORY])
def test_logits_that_are_no_numbers_fail(made: Make, tmp_path: Path, memory: int | None) -> None:
    def poison(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.1.self_attn.o_proj.weight"][3, 3] = torch.nan

    proof = measured(damaged(made("llama"), tmp_path / "nan", poison), memory_bytes=memory)
    assert not proof.passed
    assert "not numbers" in proof.reason
    assert proof.float32 is None


@pytest.mark.parametrize("memory", [None, LEAST_MEMORY])
@pytest.mark.parametrize("lost", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight"])
def test_a_lost_tensor_fails_by_name(made: Make, tmp_path: Path, memory: int | None, lost: str) -> None:
    proof = measured(damaged(made("llama"), tmp_path / "lost", lambda w: w.pop(lost)), memory_bytes=memory)
    assert not proof.passed
    assert lost in proof.reason


def test_a_model_that_fits_in_half_precision_only_is_still_loaded_by_plain_transformers(made: Make) -> None:
    pair = made("llama", HYBRID, torch.bfloat16)
    just_too_little = int(WORKING_BYTES + LOADING_OVERHEAD * 4 * read_headers(pair[1]).elements)
    proof = measured(pair, memory_bytes=just_too_little)
    assert proof.method == "layer by layer"
    assert proof.reloaded, proof.reason
    assert measured(pair, memory_bytes=LEAST_MEMORY).reloaded is None


def test_a_model_with_few_positions_is_not_run_past_them(made: Make) -> None:
    """Learned positions end; 64 tokens are generated from a shorter prompt."""
    proof = measured(made("gpt2", Wish(hidden=48, heads=6, ffn=224, layers=3)), tokens=128)
    assert proof.tokens == 128
    assert proof.generation_tokens == 64
    assert proof.generation_identical


def test_a_changed_function_passes_on_its_perplexity_and_says_both(made: Make) -> None:
    proof = measured(made("llama", Wish(layers=4, operators=("layers=stack",))))
    assert not proof.exact_claimed
    assert proof.passed, proof.reason
    assert proof.perplexity_before is not None
    assert proof.perplexity_after is not None
    assert abs(proof.perplexity_after - proof.perplexity_before) > 1e-3
    assert proof.generation_identical is None


def without_start_token(folder: Path) -> None:
    """A tokenizer of a few words that adds nothing to a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ("[unk]", "a", "of", "text", "the", "words")
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_the_models_own_tokenizer_reads_the_text(made: Make, tmp_path: Path) -> None:
    source, larger = made("llama", WIDER)
    assert "random token ids" in measured((source, larger)).text
    tokenized = tmp_path / "source"
    shutil.copytree(source, tokenized)
    without_start_token(tokenized)
    (tmp_path / "own.txt").write_text("words of a text " * 60)
    assert measured((tokenized, larger)).text == "40 tokens of the demo corpus"
    assert measured((tokenized, larger), text=tmp_path / "own.txt").text == "40 tokens of own.txt"
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(EngineError, match="too little text"):
        measured((tokenized, larger), text=tmp_path / "empty.txt")


def test_the_process_prints_json_lines_and_writes_the_proof(made: Make, tmp_path: Path) -> None:
    source, larger = made("llama", WIDER)
    command = [sys.executable, "-m", "engine.proof", "--source", str(source), "--grown", str(larger), "--threads", "1"]
    out = tmp_path / "proof.json"
    done = subprocess.run([*command, "--out", str(out), "--tokens", "32"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"phase", "done", "total", "words"} == set(lines[0])
    assert msgspec.json.decode(out.read_bytes(), type=Proof).passed

    command[command.index("--grown") + 1] = str(source)
    failed = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert json.loads(failed.stdout.splitlines()[-1])["error"]["code"] == "proof.certificate"
