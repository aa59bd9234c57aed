"""Merging without torch: what is written, what interrupts it, and what is refused before the first byte."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.adapters.folder import read_adapter
from engine.adapters.merge import MergeRequest, is_merged, merge
from engine.adapters.merge_plan import Weighed
from engine.adapters.merge_record import RECORD, MergeRecord, read_record
from engine.adapters.merge_refusals import plain_name
from engine.errors import EngineError
from engine.expansion.recipe import Source
from engine.models.headers import read_headers
from engine.surgery import numbers
from engine.surgery.reader import TensorReader
from engine.surgery.staging import PROGRESS, staging_folder
from tests.support.adapter_files import write_adapter
from tests.support.cli import cli, wait_for
from tests.support.surgery_models import TINY, read_folder, write_llama

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.2.mlp.up_proj"
SHARD_BYTES = 12_000


def base_of(folder: Path, **config: Any) -> Path:
    base = write_llama(folder, **config)
    (base / "generation_config.json").write_text('{"temperature": 0.3}')
    return base


def adapter_of(folder: Path, base: Path, *, seed: int = 1, more: dict[str, Any] | None = None, **config: Any) -> Path:
    """Rank 2 on two matrices."""
    draws = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for module, (outputs, inputs) in ((Q, (32, 32)), (UP, (64, 32))):
        tensors[f"{module}.lora_A.weight"] = draws.standard_normal((2, inputs))
        tensors[f"{module}.lora_B.weight"] = draws.standard_normal((outputs, 2))
    return write_adapter(folder, {**tensors, **(more or {})}, base, **config)


def request_of(base: Path, out: Path, *adapters: Path | tuple[Path, float], **options: Any) -> MergeRequest:
    pairs = [one if isinstance(one, tuple) else (one, 1.0) for one in adapters]
    mix = tuple(Weighed(read_adapter(folder), weight) for folder, weight in pairs)
    return MergeRequest(base, mix, out, **{"shard_bytes": SHARD_BYTES, **options})


def merged(base: Path, out: Path, *adapters: Path | tuple[Path, float], **options: Any) -> MergeRecord:
    return merge(request_of(base, out, *adapters, **options))


def floats(folder: Path, name: str) -> Any:
    tensor = next(one for one in read_headers(folder).tensors if one.name == name)
    stored = np.frombuffer(read_folder(folder)[name], numbers.storage(tensor.dtype))
    return numbers.to_float(stored, tensor.dtype, np.dtype(np.float32)).reshape(tensor.shape)


def update(adapter: Path, module: str) -> Any:
    """By the formula: alpha / r B A."""
    found = {
        name: one for name, one in ((t.name, t) for t in read_headers(adapter / "adapter_model.safetensors").tensors)
    }
    data = {
        part: np.fromfile(tensor.file, "<f4", tensor.elements, offset=tensor.offset_bytes).reshape(tensor.shape)
        for part in ("A", "B")
        if (tensor := found[f"base_model.model.{module}.lora_{part}.weight"])
    }
    return 2.0 * data["B"] @ data["A"]


def refused(work: Callable[[], object]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        work()
    return caught.value


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return base_of(tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return adapter_of(tmp_path / "adapter", base)


# ── what is written ──────────────────────────────────────────────────────────────────────────────────────────────
def test_sums_are_float32_and_rounded_once_and_the_rest_is_the_same_bytes(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    record = merged(base, tmp_path / "out", adapter)
    before, after = read_folder(base), read_folder(tmp_path / "out")
    assert [tensor.name for tensor in read_headers(tmp_path / "out").tensors] != []
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {f"{Q}.weight", f"{UP}.weight"}
    assert (record.changed, record.tensors) == (2, len(before))
    for module in (Q, UP):
        expected = numbers.to_stored(floats(base, f"{module}.weight") + update(adapter, module), "BF16")
        assert after[f"{module}.weight"] == expected.tobytes()
    assert (tmp_path / "out/config.json").read_bytes() == (base / "config.json").read_bytes()
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    assert not (tmp_path / "out/modeling_evil.py").exists()


def test_a_weighted_mix_is_the_sum_of_the_weighted_updates(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = adapter_of(tmp_path / "other", base, seed=2)
    merged(base, tmp_path / "out", (adapter, 0.75), (other, -0.5), dtype="float32")
    expected = floats(base, f"{Q}.weight") + 0.75 * update(adapter, Q) - 0.5 * update(other, Q)
    assert np.abs(floats(tmp_path / "out", f"{Q}.weight") - expected).max() < 1e-6


def test_another_type_is_that_of_every_tensor_and_of_the_config(base: Path, adapter: Path, tmp_path: Path) -> None:
    merged(base, tmp_path / "out", adapter, dtype="float32")
    assert {tensor.dtype for tensor in read_headers(tmp_path / "out").tensors} == {"F32"}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"
    assert (floats(tmp_path / "out", "model.norm.weight") == floats(base, "model.norm.weight")).all()


def test_a_number_that_the_type_cannot_hold_is_refused(base: Path, tmp_path: Path) -> None:
    large = {f"{Q}.lora_B.weight": np.full((32, 2), 1e5)}
    adapter = adapter_of(tmp_path / "large", base, more=large)
    error = refused(lambda: merged(base, tmp_path / "out", adapter, dtype="float16"))
    assert error.code == "merge.overflow"
    assert "bfloat16" in error.next_step
    assert not (tmp_path / "out").exists()


def test_an_adapter_for_a_longer_window_brings_its_config(base: Path, adapter: Path, tmp_path: Path) -> None:
    tree = json.loads((base / "config.json").read_text()) | {"max_position_embeddings": 4096}
    (adapter / "config.json").write_text(json.dumps(tree))
    merged(base, tmp_path / "out", adapter)
    assert (tmp_path / "out/config.json").read_bytes() == (adapter / "config.json").read_bytes()
    (adapter / "config.json").write_text(json.dumps(tree | {"hidden_size": 48}))
    assert refused(lambda: merged(base, tmp_path / "other", adapter)).code == "merge.other_config"


def test_more_tokens_bring_their_tokenizer_and_change_the_config(base: Path, tmp_path: Path) -> None:
    grown = {name: np.ones((100, 32)) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    adapter = adapter_of(tmp_path / "adapter", base, more=grown)
    (adapter / "tokenizer.json").write_text('{"mine": 1}')
    record = merged(base, tmp_path / "out", adapter)
    assert record.vocabulary == 100
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 100
    assert (tmp_path / "out/tokenizer.json").read_text() == '{"mine": 1}'
    assert (tmp_path / "out/chat_template.jinja").is_file(), "the adapter's tokenizer has none of its own"
    lone = adapter_of(tmp_path / "lone", base, more={"model.embed_tokens.weight": np.ones((100, 32))})
    assert refused(lambda: merged(base, tmp_path / "other", lone)).code == "merge.vocabulary"


@pytest.mark.parametrize("rows", [100, 90])
def test_a_weight_leaves_rows_as_they_are_that_the_base_has_not(rows: int, base: Path, tmp_path: Path) -> None:
    table = "model.embed_tokens.weight"
    values = np.arange(rows * 32).reshape(rows, 32) / 100
    more = {"lm_head.weight": values, table: values}
    adapter = adapter_of(tmp_path / "adapter", base, more=more)
    merged(base, tmp_path / "out", (adapter, 0.5), dtype="float32")
    for name in more:
        own, found = floats(base, name), floats(tmp_path / "out", name)
        known = min(rows, 96)
        np.testing.assert_allclose(found[:known], (own[:known] + values[:known]) / 2, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[known:], values[known:], rtol=1e-6)
    refusal = refused(lambda: merged(base, tmp_path / "two", (adapter, 0.5), (adapter, 0.5)))
    assert refusal.code == "merge.vocabulary"
    with TensorReader(read_headers(base).tensors) as reader:
        tensor = reader.find(Source(table))
        with pytest.raises(IndexError):
            reader.read(tensor, 95 * 32, np.empty((2, 32), numbers.storage(tensor.dtype)))


def test_a_tied_head_is_parted_only_where_an_adapter_parts_it(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", tied=True)
    both = {name: np.ones((96, 32)) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save = ["embed_tokens", "lm_head"]
    together = merged(base, tmp_path / "same", adapter_of(tmp_path / "a", base, more=both, modules_to_save=save))
    assert not together.untied
    assert "lm_head.weight" not in read_folder(tmp_path / "same")
    one = adapter_of(tmp_path / "b", base, more={"lm_head.weight": np.ones((96, 32))}, modules_to_save=["lm_head"])
    parted = merged(base, tmp_path / "two", one)
    assert parted.untied
    assert json.loads((tmp_path / "two/config.json").read_text())["tie_word_embeddings"] is False
    assert (floats(tmp_path / "two", "lm_head.weight") == 1).all()
    kept = read_folder(tmp_path / "two")["model.embed_tokens.weight"]
    assert kept == read_folder(base)["model.embed_tokens.weight"]


# ── interruptions ────────────────────────────────────────────────────────────────────────────────────────────────
CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from engine.adapters.folder import read_adapter
    from engine.adapters.merge import MergeRequest, merge
    from engine.adapters.merge_plan import Weighed
    from engine.surgery import helpers
    helpers._REPORT_SECONDS = 0
    base, adapter, out, shard_bytes, stop_at = sys.argv[1:]
    def report(progress):
        if progress.phase == "weights" and progress.done_bytes >= int(stop_at) >= 0:
            print("stopped", flush=True)
            sys.stdin.readline()
    mix = (Weighed(read_adapter(Path(adapter))),)
    merge(MergeRequest(Path(base), mix, Path(out), shard_bytes=int(shard_bytes)), report)
    """
)


def child(base: Path, adapter: Path, out: Path, stop_at: int, prefix: str = "") -> subprocess.Popen[bytes]:
    words = [str(base), str(adapter), str(out), str(SHARD_BYTES), str(stop_at)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", prefix + CHILD, *words], **pipes)  # type: ignore[call-overload, no-any-return]


def test_killed_at_any_moment_nothing_has_the_name_and_the_next_attempt_goes_on(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    merged(base, tmp_path / "whole", adapter)
    out = tmp_path / "out"
    for stop_at in (1, 40_000):
        process = child(base, adapter, out, stop_at)
        assert process.stdout is not None
        assert process.stdout.readline() == b"stopped\n"
        log = staging_folder(out) / PROGRESS
        wait_for(lambda: stop_at == 1 or b'"shard"' in log.read_bytes(), "a finished weight file")  # noqa: B023
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not out.exists()
    record = merged(base, out, adapter)
    assert record.kept_bytes > 0
    assert read_folder(out) == read_folder(tmp_path / "whole")
    assert not staging_folder(out).exists()
    assert is_merged(request_of(base, out, adapter))


def test_what_lies_unfinished_of_another_merge_is_not_taken(base: Path, adapter: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", adapter_of(tmp_path / "other", base, seed=2)
    process = child(base, adapter, out, 40_000)
    assert process.stdout is not None
    assert process.stdout.readline() == b"stopped\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    error = refused(lambda: merged(base, out, other))
    assert error.code == "merge.unfinished"
    assert "--force" in error.next_step
    merged(base, out, other, force=True)
    merged(base, tmp_path / "whole", other)
    assert read_folder(out) == read_folder(tmp_path / "whole")


@pytest.mark.parametrize("changed", ["extra", "tokenizer"])
def test_small_files_of_other_content_make_another_merge(
    changed: str, base: Path, adapter: Path, tmp_path: Path
) -> None:
    (adapter / "tokenizer.json").write_text('{"mine": 1}')
    merged(base, tmp_path / "out", adapter, extra={"note.json": b"1"})
    assert is_merged(request_of(base, tmp_path / "out", adapter, extra={"note.json": b"1"}))
    if changed == "tokenizer":
        (adapter / "tokenizer.json").write_text('{"mine": 2}')
    note = b"2" if changed == "extra" else b"1"
    assert not is_merged(request_of(base, tmp_path / "out", adapter, extra={"note.json": note}))


def test_a_merge_of_nothing_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    assert refused(lambda: merged(base, tmp_path / "out", (adapter, 0.0))).code == "adapter.mix"


def test_a_disk_that_fills_up_says_what_is_missing_and_the_rest_is_kept(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    merged(base, tmp_path / "whole", adapter)
    largest = max(path.stat().st_size for path in (tmp_path / "whole").glob("*.safetensors"))
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest - 1}, {largest - 1}))\n"
    process = child(base, adapter, tmp_path / "out", -1, prefix=limit)
    _, errors = process.communicate()
    assert process.returncode != 0
    assert b"There is no room left to write" in errors
    assert b"are to be written still" in errors
    assert not (tmp_path / "out").exists()
    merged(base, tmp_path / "out", adapter)
    assert read_folder(tmp_path / "out") == read_folder(tmp_path / "whole")


def test_too_little_room_is_said_before_the_first_byte(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    error = refused(lambda: merged(base, tmp_path / "out", adapter))
    assert (error.code, int(error.exit_code)) == ("disk.full", 4)
    assert "are missing" in error.what
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_nothing_is_overwritten_but_a_model_by_force(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merged(base, out, adapter)
    error = refused(lambda: merged(base, out, adapter, dtype="float32"))
    assert error.code == "merge.out_exists"
    assert "--force" in error.next_step
    merged(base, out, adapter, dtype="float32", force=True)
    assert read_record(out) is not None
    assert {tensor.dtype for tensor in read_headers(out).tensors} == {"F32"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "out"]
    (out / "notes.txt").write_text("dear")
    lost = refused(lambda: merged(base, out, adapter, force=True))
    assert (lost.code, "notes.txt" in lost.cause) == ("merge.out_exists", True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text("{}")
    (tmp_path / "mine/letter.txt").write_text("dear")
    assert refused(lambda: merged(base, tmp_path / "mine", adapter, force=True)).code == "merge.out_exists"
    assert (tmp_path / "mine/letter.txt").is_file()
    for inside in (base, base / "in", adapter / "in"):
        assert refused(lambda inside=inside: merged(base, inside, adapter, force=True)).code.startswith("surgery.out")


@pytest.mark.parametrize(
    "section", [{"quant_method": "gptq", "bits": 4}, {"load_in_4bit": True}, {"load_in_8bit": True}]
)
def test_a_quantised_base_is_refused_with_the_way_out(section: dict[str, Any], tmp_path: Path) -> None:
    base = base_of(tmp_path / "Qwen3-4B-bnb-4bit", quantization_config=section)
    adapter = adapter_of(tmp_path / "adapter", base)
    error = refused(lambda: merged(base, tmp_path / "out", adapter))
    assert error.code == "merge.quantised_base"
    assert "--base" in error.next_step
    assert error.next_step.find("Qwen3-4B.") > 0, "the name without what says so"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit", "unsloth/Qwen3-4B"),
        ("TheBloke/Mistral-7B-v0.1-GPTQ", "TheBloke/Mistral-7B-v0.1"),
        ("org/model-AWQ", "org/model"),
        ("org/model-4bit", "org/model"),
        ("org/model-8bit", "org/model"),
        ("meta-llama/Llama-3.1-8B", ""),
        ("Qwen/Qwen3-0.6B", ""),
    ],
)
def test_the_unquantised_models_name_is_told(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    other = base_of(tmp_path / "other", dims=TINY)
    strange = write_adapter(
        tmp_path / "adapter", {f"{Q}.lora_A.weight": np.ones((2, 48)), f"{Q}.lora_B.weight": np.ones((48, 2))}, other
    )
    error = refused(lambda: merged(base, tmp_path / "out", strange))
    assert error.code == "adapter.other_base"
    assert "48" in error.cause


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_command_merges_and_says_what_it_did(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli("adapters", "merge", str(adapter), "--out", str(out), "--no-verify", "--json")
    assert done.code == 0, done.err
    assert done.json["merge"]["changed"] == 2
    assert done.json["not_compared"] == "not asked for"
    assert (out / RECORD).is_file()
    again = cli("adapters", "merge", str(adapter), "--out", str(out), "--no-verify")
    assert again.code == 2
    assert "--force" in again.err
    assert "Traceback" not in again.err


def test_a_base_that_is_not_here_and_named_as_quantised_is_refused_with_its_plain_name(
    base: Path, tmp_path: Path
) -> None:
    adapter = adapter_of(tmp_path / "adapter", base, base_model_name_or_path="someone/Tiny-bnb-4bit")
    done = cli("adapters", "merge", str(adapter), "--out", str(tmp_path / "out"), env={"HF_HUB_OFFLINE": "1"})
    assert done.code == 2
    assert "--base someone/Tiny" in done.err
