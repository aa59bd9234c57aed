"""What grew, undone: the parent's files byte for byte, or an honest sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.errors import EngineError
from engine.expansion.axes import Dims
from engine.expansion.growth import LayerKind, LayerSource
from engine.expansion.plan import ExpansionPlan
from engine.models.headers import read_headers
from engine.surgery import numbers
from engine.surgery.expand import ExpandRequest, expand, staging_folder
from engine.surgery.helpers import Progress
from engine.surgery.undo import undo
from scaler_tui.cli import main
from tests.support.surgery_models import TINY, plan_for, read_folder, write_llama

IDENTITY = (LayerSource(0), LayerSource(0, LayerKind.IDENTITY), LayerSource(1), LayerSource(2))


def grown(source: Path, out: Path, plan: ExpansionPlan, shard_bytes: int = 50_000) -> Path:
    expand(ExpandRequest(source, out, plan, shard_bytes, proof=False), lambda _: None)
    return out


def plan(after: Dims, **operators: str) -> ExpansionPlan:
    return plan_for(TINY, after, operators)


def weights_and_config(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name.startswith(("model", "config", "README", "tok", "chat")) and path.suffix != ".py"
    }


def refused(call: Callable[[], object]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        call()
    return caught.value


PLANS = {
    "hidden": plan(replace(TINY, hidden=48), hidden="pad"),
    "ffn": plan(replace(TINY, ffn=100), ffn="pad"),
    "heads": plan(replace(TINY, heads=8), heads="pad"),
    "kv_heads": plan(replace(TINY, heads=6, kv_heads=3, hidden=48), kv_heads="pad", heads="pad", hidden="pad"),
    "tile-plain": plan(replace(TINY, hidden=64, ffn=128), hidden="tile-plain", ffn="tile-plain"),
    "depth": plan_for(TINY, replace(TINY, layers=4), {"layers": "identity"}, layers=IDENTITY),
    "hybrid": plan_for(
        TINY, replace(TINY, layers=4, hidden=48, ffn=80), {"layers": "identity", "hidden": "pad", "ffn": "pad"},
        layers=IDENTITY,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_parents_files_come_back_byte_for_byte(tmp_path: Path, name: str, tied: bool) -> None:
    source = write_llama(tmp_path / "src", tied=tied, files=3)
    folder = grown(source, tmp_path / "grown", PLANS[name])
    result = undo(folder, tmp_path / "parent", lambda _: None)
    assert result.exact
    assert result.rescaled == ()
    assert weights_and_config(tmp_path / "parent") == weights_and_config(source)
    assert not (tmp_path / "parent" / "expansion.json").exists()


def test_an_interrupted_undo_goes_on_without_making_finished_files_again(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src", files=3)
    folder, out = grown(source, tmp_path / "grown", PLANS["depth"]), tmp_path / "parent"

    def interrupt(progress: Progress) -> None:
        if progress.words == "weights recovered":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        undo(folder, out, interrupt)
    assert not out.exists()
    finished = {path.name: path.stat().st_mtime_ns for path in staging_folder(out).glob("*.safetensors")}
    assert len(finished) == 3
    assert refused(lambda: undo(folder, out, lambda _: None)).code == "surgery.unfinished"
    assert main(["expand", str(folder), str(out), "--undo", "--resume"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")} == finished
    assert weights_and_config(out) == weights_and_config(source)


def test_float32_with_unscaled_matrices_comes_back_byte_for_byte_too(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src", dtype="F32", files=1)
    folder = grown(source, tmp_path / "grown", PLANS["hidden"])
    assert undo(folder, tmp_path / "parent", lambda _: None).exact
    assert weights_and_config(tmp_path / "parent") == weights_and_config(source)


def test_unequal_shares_come_back_within_one_unit_and_say_so(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src", files=1)
    folder = grown(source, tmp_path / "grown", plan(replace(TINY, ffn=100), ffn="lemon"))
    result = undo(folder, tmp_path / "parent", lambda _: None)
    assert not result.exact
    assert result.rescaled
    assert all(name.endswith("down_proj.weight") for name in result.rescaled)
    assert "not byte for byte" in result.words
    before, after = read_folder(source), read_folder(tmp_path / "parent")
    for name, data in before.items():
        if name not in result.rescaled:
            assert after[name] == data, name
            continue
        old, new = (np.frombuffer(raw, np.uint16).astype(np.int64) for raw in (data, after[name]))
        assert np.abs(old - new).max() <= 1, name


def test_a_cast_cannot_be_undone_to_the_bit_and_says_so(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src", dtype="F32", files=1)
    folder = grown(source, tmp_path / "grown", replace(PLANS["ffn"], dtype="bfloat16"))
    result = undo(folder, tmp_path / "parent", lambda _: None)
    assert not result.exact
    assert {tensor.dtype for tensor in read_headers(tmp_path / "parent").tensors} == {"F32"}


def test_noise_cannot_be_undone_and_is_refused(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src")
    folder = grown(source, tmp_path / "grown", plan(replace(TINY, ffn=128), ffn="tile"))
    error = refused(lambda: undo(folder, tmp_path / "parent", lambda _: None))
    assert error.code == "surgery.undo_impossible"
    assert "down_proj" in error.what
    assert not (tmp_path / "parent").exists()
    assert not staging_folder(tmp_path / "parent").exists()


def test_a_head_stored_beside_its_tied_embedding_comes_back(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src", tied=False, files=1)
    names = {tensor.name: tensor for tensor in read_headers(source).tensors}
    embedding, head = names["model.embed_tokens.weight"], names["lm_head.weight"]
    with (source / "model.safetensors").open("r+b") as file:
        file.seek(embedding.offset_bytes)
        content = file.read(embedding.data_bytes)
        file.seek(head.offset_bytes)
        file.write(content)
    config = source / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    folder = grown(source, tmp_path / "grown", PLANS["hidden"])
    assert "lm_head.weight" not in read_folder(folder)
    assert undo(folder, tmp_path / "parent", lambda _: None).exact
    assert weights_and_config(tmp_path / "parent") == weights_and_config(source)


def test_a_trained_model_is_refused_unless_its_slices_are_asked_for(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src", files=1)
    folder = grown(source, tmp_path / "grown", PLANS["hidden"], shard_bytes=10_000_000)
    tensor = next(one for one in read_headers(folder).tensors if one.name == "model.layers.0.mlp.up_proj.weight")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(tensor.offset_bytes)
        file.write(numbers.to_stored(np.array([7.0]), "BF16").tobytes())
    error = refused(lambda: undo(folder, tmp_path / "parent", lambda _: None))
    assert error.code == "surgery.undo_changed"
    result = undo(folder, tmp_path / "slices", lambda _: None, trained=True)
    assert not result.exact
    first = np.frombuffer(read_folder(tmp_path / "slices")[tensor.name], np.uint16)[:1]
    assert numbers.to_float(first, "BF16", np.dtype(np.float64))[0] == 7.0


def test_a_folder_that_never_grew_is_refused(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src")
    assert refused(lambda: undo(source, tmp_path / "parent", lambda _: None)).code == "surgery.not_grown"


def test_a_certificate_of_another_version_is_not_guessed_at(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "src")
    folder = grown(source, tmp_path / "grown", PLANS["hidden"])
    path = folder / "expansion.json"
    path.write_text(
        path.read_text().replace('"seed": 17', '"seed": 17').replace('"hidden": "pad"', '"hidden": "lemon"')
    )
    assert refused(lambda: undo(folder, tmp_path / "parent", lambda _: None)).code == "surgery.undo_version"
    path.write_text("{")
    assert refused(lambda: undo(folder, tmp_path / "parent", lambda _: None)).code == "surgery.undo_certificate"
