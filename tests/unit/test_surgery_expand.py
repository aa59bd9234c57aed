"""Whole folders grown: what is written, what goes along, what is refused, and that the source stays as it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors import safe_open

from engine.errors import EngineError
from engine.expansion.certificate import Certificate, encode_certificate, read_certificate
from engine.expansion.growth import LayerKind, LayerSource
from engine.expansion.plan import ExpansionPlan
from engine.expansion.recipe import Recipe
from engine.models.headers import read_headers
from engine.surgery.expand import ExpandRequest, Progress, expand, staging_folder
from engine.surgery.shards import index_bytes, split
from tests.support.surgery_models import (
    TINY,
    plan_for,
    random_tensor,
    read_folder,
    write_llama,
    write_safetensors,
)

WIDER = replace(TINY, hidden=48, ffn=96)
DEEPER = replace(TINY, layers=5)
LAYERS = (
    LayerSource(0),
    LayerSource(1),
    LayerSource(1, LayerKind.IDENTITY),
    LayerSource(2),
    LayerSource(2, LayerKind.IDENTITY),
)


def wider() -> ExpansionPlan:
    return plan_for(TINY, WIDER, {"hidden": "pad", "ffn": "pad"})


def deeper() -> ExpansionPlan:
    return plan_for(TINY, DEEPER, {"layers": "identity"}, layers=LAYERS)


def grow(source: Path, out: Path, plan: ExpansionPlan | None = None, **options: object) -> Certificate:
    request = ExpandRequest(source, out, plan or wider(), proof=False, **options)  # type: ignore[arg-type]
    return expand(request, lambda _: None)


def refused(call: Callable[[], object]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        call()
    return caught.value


def fingerprint(folder: Path) -> dict[str, tuple[int, int, str]]:
    return {
        path.name: (path.stat().st_size, path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
    }


def test_a_grown_folder_holds_everything_a_loader_and_a_user_need(tmp_path: Path) -> None:
    source, out = write_llama(tmp_path / "src"), tmp_path / "out"
    before = fingerprint(source)
    certificate = grow(source, out, shard_bytes=60_000)
    names = {path.name for path in out.iterdir()}
    weights = {name for name in names if name.endswith(".safetensors")}
    assert len(weights) > 1
    assert names - weights == {
        "config.json", "tokenizer.json", "chat_template.jinja", "SOURCE_README.md", "expansion.json",
        "model.safetensors.index.json",
    }  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert (config["hidden_size"], config["intermediate_size"], config["head_dim"]) == (48, 96, 8)
    assert (out / "expansion.json").read_bytes() == encode_certificate(certificate)
    assert read_certificate(out) is not None
    assert fingerprint(source) == before
    assert not staging_folder(out).exists()


def test_every_file_is_in_the_manifest_with_its_hash(tmp_path: Path) -> None:
    certificate = grow(write_llama(tmp_path / "src"), tmp_path / "out", shard_bytes=60_000)
    listed = {entry.name: entry for entry in certificate.files}
    present = {path.name for path in (tmp_path / "out").iterdir()} - {"expansion.json"}
    assert set(listed) == present
    for name, entry in listed.items():
        content = (tmp_path / "out" / name).read_bytes()
        assert (entry.size_bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_depth_growth_copies_old_tensors_byte_for_byte_and_closes_new_blocks(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src")
    certificate = grow(source, tmp_path / "out", deeper())
    old, new = read_folder(source), read_folder(tmp_path / "out")
    for number, layer in enumerate(LAYERS):
        for name, data in old.items():
            if f".layers.{layer.base}." not in name:
                continue
            made = new[name.replace(f".layers.{layer.base}.", f".layers.{number}.")]
            closes = layer.new and name.endswith(("o_proj.weight", "down_proj.weight"))
            assert made == (bytes(len(data)) if closes else data), name
    entry = certificate.tensors["model.layers.2.mlp.up_proj.weight"]
    assert (entry.new, entry.sources) == (True, ("model.layers.1.mlp.up_proj.weight",))
    assert not certificate.tensors["model.layers.3.mlp.up_proj.weight"].new


def test_widened_matrices_keep_the_old_block_bit_for_bit(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src")
    grow(source, tmp_path / "out")
    old, new = read_folder(source), read_folder(tmp_path / "out")
    name = "model.layers.1.mlp.down_proj.weight"
    small = np.frombuffer(old[name], np.uint16).reshape(32, 64)
    large = np.frombuffer(new[name], np.uint16).reshape(48, 96)
    assert np.array_equal(large[:32, :64], small)
    assert not large[32:].any()
    gain = np.frombuffer(new["model.norm.weight"], np.float32)
    original = np.frombuffer(old["model.norm.weight"], np.uint16).astype(np.uint32) << 16
    np.testing.assert_allclose(gain[:32], original.view(np.float32) / np.sqrt(48 / 32), rtol=1e-6)


def test_equal_plans_give_equal_bytes_whatever_the_shards(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src")
    grow(source, tmp_path / "one")
    grow(source, tmp_path / "many", shard_bytes=20_000)
    assert read_folder(tmp_path / "one") == read_folder(tmp_path / "many")
    other = replace(wider(), seed=18)
    grow(source, tmp_path / "seed", other)
    assert read_folder(tmp_path / "seed") != read_folder(tmp_path / "one")


def test_the_official_reader_opens_every_shard_and_tensors_are_aligned(tmp_path: Path) -> None:
    grow(write_llama(tmp_path / "src"), tmp_path / "out", shard_bytes=30_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    for tensor in read_headers(tmp_path / "out").tensors:
        width = {"F32": 4, "BF16": 2}[tensor.dtype]
        assert tensor.offset_bytes % width == 0
        assert index["weight_map"][tensor.name] == tensor.file.name
        with safe_open(str(tensor.file), framework="np") as file:
            assert tuple(file.get_slice(tensor.name).get_shape()) == tensor.shape
    assert index["metadata"]["total_size"] == sum(t.data_bytes for t in read_headers(tmp_path / "out").tensors)


def test_zero_blocks_are_holes_on_disk(tmp_path: Path) -> None:
    dims = replace(TINY, hidden=1024, ffn=2048, layers=1)
    layers = (LayerSource(0), *(LayerSource(0, LayerKind.IDENTITY),) * 4)
    plan = plan_for(dims, replace(dims, layers=5), {"layers": "identity"}, layers=layers)
    certificate = grow(write_llama(tmp_path / "src", dims), tmp_path / "out", plan)
    (file,) = (tmp_path / "out").glob("*.safetensors")
    closed_bytes = 4 * 2 * 1024 * 2048
    assert file.stat().st_size - file.stat().st_blocks * 512 > closed_bytes * 0.9
    assert certificate.bytes_written < file.stat().st_size - closed_bytes * 0.9
    listed = {entry.name: entry.sha256 for entry in certificate.files}
    assert listed[file.name] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_cast_is_written_and_said_in_the_config(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src", dtype="F32")
    grow(source, tmp_path / "out", replace(wider(), dtype="bfloat16"))
    assert {tensor.dtype for tensor in read_headers(tmp_path / "out").tensors} == {"BF16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    grow(write_llama(tmp_path / "src", tied=True), tmp_path / "out")
    assert "lm_head.weight" not in read_folder(tmp_path / "out")


def test_progress_is_monotonous_and_ends_complete(tmp_path: Path) -> None:
    said: list[Progress] = []
    request = ExpandRequest(write_llama(tmp_path / "src"), tmp_path / "out", wider(), proof=False)
    expand(request, said.append)
    weights = [one for one in said if one.phase == "weights"]
    assert weights[-1].done_bytes == weights[-1].total_bytes > 0
    assert [one.done_bytes for one in weights] == sorted(one.done_bytes for one in weights)
    assert said[-1].phase == "done"


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_an_existing_output_is_never_touched(tmp_path: Path) -> None:
    source, out = write_llama(tmp_path / "src"), tmp_path / "out"
    out.mkdir()
    assert refused(lambda: grow(source, out)).code == "surgery.out_exists"
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("place", ["src/out", "src", "."])
def test_output_and_source_may_not_lie_in_each_other(tmp_path: Path, place: str) -> None:
    source = write_llama(tmp_path / "box" / "src")
    before = fingerprint(source)
    error = refused(lambda: grow(source, tmp_path / "box" / place))
    assert error.code == "surgery.out_inside_source"
    assert fingerprint(source) == before


def test_an_output_inside_the_source_is_seen_through_links(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src")
    (tmp_path / "link").symlink_to(source)
    assert refused(lambda: grow(source, tmp_path / "link" / "out")).code == "surgery.out_inside_source"


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src")
    (source / "model-00002-of-00002.safetensors").unlink()
    assert refused(lambda: grow(source, tmp_path / "out")).code == "safetensors.missing_shards"


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, kept: int) -> None:
    source = write_llama(tmp_path / "src")
    path = source / "model-00001-of-00002.safetensors"
    os.truncate(path, kept if kept >= 0 else path.stat().st_size - 1)
    error = refused(lambda: grow(source, tmp_path / "out"))
    assert error.code == "safetensors.damaged"
    assert path.name in error.what


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src")
    path = source / "model-00002-of-00002.safetensors"
    names = [tensor.name for tensor in read_headers(source).tensors if tensor.file == path]
    again = {name: ("BF16", random_tensor(1, (4,), "BF16")) for name in ("model.embed_tokens.weight",)}
    held = {
        tensor.name: ("BF16", np.frombuffer(read_folder(source)[tensor.name], np.uint16).reshape(tensor.shape))
        for tensor in read_headers(source).tensors
        if tensor.name in names
    }
    write_safetensors(path, held | again)
    error = refused(lambda: grow(source, tmp_path / "out"))
    assert error.code == "safetensors.duplicate"
    assert "model.embed_tokens.weight" in error.what


def test_nan_in_the_weights_is_refused_and_nothing_stays_behind(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src", files=1)
    path = source / "model.safetensors"
    tensor = next(one for one in read_headers(source).tensors if one.name.endswith("1.mlp.up_proj.weight"))
    with path.open("r+b") as file:
        file.seek(tensor.offset_bytes + 200)
        file.write(b"\xc1\x7f")
    error = refused(lambda: grow(source, tmp_path / "out"))
    assert error.code == "weights.nan"
    assert tensor.name in error.what
    assert not (tmp_path / "out").exists()
    assert not staging_folder(tmp_path / "out").exists()


def test_a_tensor_no_rule_knows_is_refused(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src", files=1)
    held = {
        tensor.name: ("BF16", np.frombuffer(read_folder(source)[tensor.name], np.uint16).reshape(tensor.shape))
        for tensor in read_headers(source).tensors
    }
    held["model.layers.0.mystery.weight"] = ("BF16", random_tensor(1, (4,), "BF16"))
    write_safetensors(source / "model.safetensors", held)
    error = refused(lambda: grow(source, tmp_path / "out"))
    assert error.code == "expansion.tensor"
    assert "mystery" in error.what


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors"])
def test_quantised_sources_are_refused_with_the_way_out(tmp_path: Path, method: str) -> None:
    source = write_llama(tmp_path / "src", quantization_config={"quant_method": method})
    error = refused(lambda: grow(source, tmp_path / "out"))
    assert error.code == "surgery.quantised"
    assert "dequantize" in error.next_step


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src", replace(TINY, layers=2))
    assert refused(lambda: grow(source, tmp_path / "out")).code == "surgery.other_model"


def test_too_little_room_is_said_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_llama(tmp_path / "src")
    free = shutil.disk_usage(tmp_path)._replace(free=70_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    dims = replace(WIDER, ffn=96_000)
    error = refused(lambda: grow(source, tmp_path / "out", plan_for(TINY, dims, {"hidden": "pad", "ffn": "pad"})))
    assert error.code == "disk.full"
    assert "66.8 MiB" in error.what
    assert int(error.exit_code) == 4
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and "out" in path.name] == []


def test_the_surgery_starts_without_torch_and_its_friends() -> None:
    code = "import sys, engine.surgery.expand, engine.surgery.undo; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "pydantic", "textual", "safetensors"} & set(done.stdout.split())


# ── shards ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_shards_hold_at_most_their_size_and_a_larger_tensor_alone() -> None:
    recipes = [Recipe(f"t{index}", (size,), "F32", (), ()) for index, size in enumerate((300, 300, 2000, 100, 800))]
    shards = split(recipes, 4000)
    assert [[placed.recipe.name for placed in shard.tensors] for shard in shards] == [
        ["t0", "t1"],
        ["t2"],
        ["t3", "t4"],
    ]
    assert [shard.name for shard in shards] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    weight_map = msgspec.json.decode(index_bytes(shards))["weight_map"]
    assert weight_map["t3"] == "model-00003-of-00003.safetensors"


def test_one_file_has_the_plain_name_and_wide_types_come_first() -> None:
    recipes = [Recipe("a", (3,), "BF16", (), ()), Recipe("b", (5,), "F32", (), ()), Recipe("c", (2,), "BF16", (), ())]
    (shard,) = split(recipes, 10_000)
    assert shard.name == "model.safetensors"
    assert [placed.recipe.name for placed in shard.tensors] == ["b", "a", "c"]
    assert len(shard.header) % 8 == 0


def test_a_tensor_made_twice_is_refused() -> None:
    twice = [Recipe("a", (3,), "BF16", (), ())] * 2
    assert refused(lambda: split(twice, 10_000)).code == "surgery.duplicate"
