"""The quantiser's surroundings without llama.cpp: importance matrices in both forms, refusals, and what a dead or wordy
worker leads to."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from engine.errors import EngineError
from engine.export import quantise as quantiser
from engine.export.imatrix import check_imatrix, read_imatrix
from engine.export.ollama_create import create
from engine.export.order import ExportOrder
from engine.export.quantise import Fallback, quantise
from engine.export.runtime import VARIABLE, Runtime, find_runtime, why_none
from engine.export.sizes import gguf_sizes
from engine.export.work import export
from engine.jobs.spec_export import Destination
from engine.resources import demo_model_dir
from tests.support.gguf_models import config_of, write_model

NAME = "blk.0.ffn_up.weight"
SQUARES = np.array([4.0, 0.0, 10.0, 2.0], dtype=np.float32)


def write_new(path: Path) -> Path:
    """The GGUF form: sums of squares and how many rows there were; two experts, the second one never used."""
    writer = GGUFWriter(path, "")
    writer.add_string("general.type", "imatrix")
    writer.add_tensor(f"{NAME}.in_sum2", SQUARES.reshape(1, -1))
    writer.add_tensor(f"{NAME}.counts", np.array([[2.0]], dtype=np.float32))
    writer.add_tensor("blk.0.experts.weight.in_sum2", np.stack([SQUARES, SQUARES]))
    writer.add_tensor("blk.0.experts.weight.counts", np.array([[2.0], [0.0]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_old(path: Path, *, cut: int = 0) -> Path:
    """The older form: means of squares times the number of calls."""
    values = (SQUARES / 2 * 3).astype("<f4").tobytes()
    content = struct.pack("<ii", 1, len(NAME)) + NAME.encode() + struct.pack("<ii", 3, 4) + values
    path.write_bytes(content[: len(content) - cut])
    return path


def test_both_forms_of_an_importance_matrix_are_read(tmp_path: Path) -> None:
    new, old = read_imatrix(write_new(tmp_path / "new.gguf")), read_imatrix(write_old(tmp_path / "old.dat"))
    assert [one.name for one in new] == [NAME, "blk.0.experts.weight"]
    assert new[0].values.tolist() == old[0].values.tolist() == [2, 0, 5, 1]
    assert new[1].values.tolist() == [2, 0, 5, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"some text", b"\xff" * 40], ids=["empty", "head", "text", "noise"])
def test_other_files_are_no_importance_matrix(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(EngineError) as refusal:
        read_imatrix(tmp_path / "x")
    assert refusal.value.code == "export.imatrix"
    assert "llama-imatrix" in refusal.value.next_step


def test_an_importance_matrix_is_read_before_anything_is_written(tmp_path: Path) -> None:
    whole, junk, gone = write_old(tmp_path / "whole.dat"), tmp_path / "junk", tmp_path / "gone"
    junk.write_bytes(b"some text")
    cases = (
        (junk, ("q4_k_m",), "no importance matrix"),
        (gone, ("q4_k_m",), "There is no file"),
        (whole, ("q8_0", "f16"), "is for k-quants"),
    )
    for number, (matrix, types, words) in enumerate(cases):
        place = tmp_path / str(number)
        place.mkdir()
        order = ExportOrder(
            destination=Destination.GGUF, source=str(demo_model_dir()), out=str(place / "out"), name="x", types=types,
            imatrix=str(matrix), verify=False,
        )  # fmt: skip
        with pytest.raises(EngineError) as refusal:
            export(order, lambda *_: None)
        assert refusal.value.code == "export.imatrix"
        assert words in refusal.value.what
        assert list(place.iterdir()) == []
    check_imatrix(whole, ("q4_k_m",))


def test_programs_that_have_no_business_on_the_hub_get_no_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_x")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nenv >&2\necho hf_x: ${HF_TOKEN:-none} >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv("GGUF_PYTHON", str(python))
    assert find_runtime() is None
    assert "hf_x: none" in why_none()
    program = tmp_path / "ollama"
    program.write_text('#!/bin/sh\necho "token: ${HF_TOKEN:-none}" >&2\nexit 1\n')
    program.chmod(0o755)
    with pytest.raises(EngineError) as failed:
        create([str(program), "create", "x"])
    assert failed.value.cause == "token: none"


def test_the_sizes_of_a_model_with_an_image_part_are_those_of_its_language_part(tmp_path: Path) -> None:
    write_model(tmp_path / "model", config_of("gemma3_text"))
    plain = gguf_sizes(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": config,
        "vision_config": {}}))  # fmt: skip
    assert gguf_sizes(tmp_path / "model")["q4_k_m"] == pytest.approx(plain["q4_k_m"], rel=0.01)


def test_an_importance_matrix_that_ends_early_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no importance matrix"):
        read_imatrix(write_old(tmp_path / "old.dat", cut=3))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    from engine.export.gguf import write_gguf

    write_model(tmp_path / "model", config_of("llama"))
    return write_gguf(tmp_path / "model", tmp_path / "source.gguf", "f16").path


def refused(source: Path, out: Path, kind: str = "q4_k_m") -> EngineError:
    with pytest.raises(EngineError) as caught:
        quantise(source, out, kind)
    return caught.value


def test_without_llama_cpp_the_way_out_is_said(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "no-python"))
    error = refused(source, tmp_path / "out.gguf")
    assert error.code == "export.no_quantiser"
    assert "scaler-wizard[gguf]" in error.next_step
    assert "q8_0" in error.next_step


def test_bad_orders_are_refused_before_anything_is_started(source: Path, tmp_path: Path) -> None:
    assert refused(source, tmp_path / "out.gguf", "q3_k").code == "export.type"
    assert refused(tmp_path / "none.gguf", tmp_path / "out.gguf").code == "export.source"
    assert refused(tmp_path / "model" / "config.json", tmp_path / "out.gguf").code == "export.source"
    assert refused(source, source).code == "export.exists"


HEAD = """
import json, os, sys
def say(**line): print(json.dumps(line), flush=True)
def write(content): open(order["out"], "wb").write(content)
order = json.load(open(sys.argv[1]))
"""


def with_worker(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Real processes that speak the worker's language, in its place."""
    path = folder / "worker.py"
    path.write_text(HEAD + script)
    monkeypatch.setattr(quantiser, "_WORKER", path)
    monkeypatch.setattr(quantiser, "find_runtime", lambda: Runtime(sys.executable, "0.0.0"))


PLAN = "say(version='9', size_bytes=1000, types={'a': 'q8_0'}, narrow={'a': 320})\nsys.stdin.readline()\n"


def test_what_the_worker_says_becomes_the_report(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_worker(monkeypatch, tmp_path, PLAN + "write(b'GGUF')\nsay(done_bytes=7)\nsay(finished=True)")
    steps: list[tuple[int, int]] = []
    file = quantise(source, tmp_path / "out.gguf", "q6_k", on_progress=lambda *step: steps.append(step))
    assert (file.fallbacks, file.quantiser) == ((Fallback("a", 320, "q8_0"),), "llama.cpp (9)")
    assert steps == [(7, source.stat().st_size)]
    assert (tmp_path / "out.gguf").read_bytes() == b"GGUF"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("say(failed='unknown model')", "unknown model"),
        ("raise SystemExit('no such symbol')", "no such symbol"),
        (PLAN + "write(b'GG')\nos.kill(os.getpid(), 9)", "exit code -9"),
    ],
    ids=["says so", "does not start", "is killed"],
)
def test_a_worker_that_ends_early_leaves_nothing_and_its_last_words(
    script: str, words: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_worker(monkeypatch, tmp_path, script)
    error = refused(source, tmp_path / "out.gguf")
    assert (error.code, words in error.cause, int(error.exit_code)) == ("export.quantiser", True, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "source.gguf", "worker.py"]


def test_a_plan_beyond_the_disk_is_refused_with_what_is_missing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_worker(monkeypatch, tmp_path, PLAN.replace("1000", "1 << 60"))
    error = refused(source, tmp_path / "out.gguf")
    assert error.code == "disk.full"
    assert "missing" in error.what
