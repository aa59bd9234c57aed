"""Exports held against transformers in llama.cpp itself: figures, stop tokens, and a file that must not get its name.

Needs llama-cpp-python in the Python that GGUF_PYTHON names (`make test-gguf`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from gguf import GGUFReader

from engine.errors import EngineError, ExitCode
from engine.export.gguf import write_gguf
from engine.export.order import ExportOrder
from engine.export.runtime import find_runtime, why_none
from engine.export.sizes import gguf_sizes
from engine.export.staging import staging_of
from engine.export.work import export
from engine.jobs.export_report import ExportedFile, ExportReport
from engine.jobs.spec_export import Destination
from engine.models.headers import read_headers
from engine.resources import demo_model_dir
from tests.support.adapter_files import write_adapter

pytestmark = [pytest.mark.gguf, pytest.mark.slow]
TYPES = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")


@pytest.fixture(scope="module", autouse=True)
def runtime() -> None:
    if find_runtime() is None:
        pytest.skip(why_none())


def order_for(out: Path, destination: str = "gguf", **fields: Any) -> ExportOrder:
    settings = {"source": str(demo_model_dir()), "name": "demo", "types": ("f16",)} | fields
    return ExportOrder(destination=Destination(destination), out=str(out), **settings)


def silent(*_: Any) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    out = tmp_path_factory.mktemp("exported") / "demo"
    return export(order_for(out, "ollama", types=TYPES), silent)


def file_of(report: ExportReport, kind: str) -> ExportedFile:
    return next(file for file in report.files if file.kind == kind)


def test_the_f16_file_says_token_by_token_what_transformers_says(exported: ExportReport) -> None:
    found = file_of(exported, "f16").agreement
    assert found is not None
    print(f"\nf16: {found}")
    assert found.runtime.startswith("llama.cpp (0.")
    assert found.same_top_token == 1
    assert found.first_difference == -1
    assert found.largest_logit_difference < 0.05
    assert abs(found.perplexity_change) < 1e-3
    assert found.same_tokens
    assert found.same_prompt


def test_stop_tokens_end_answers_in_both_programs(exported: ExportReport) -> None:
    assert all(file.agreement.stops for file in exported.files if file.agreement is not None)
    modelfile = Path(file_of(exported, "modelfile").path).read_text()
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    f16 = file_of(exported, "f16").agreement
    assert f16 is not None
    assert 0 < f16.ended == f16.reference_ended <= f16.prompts
    assert f"Stop tokens ended {f16.ended} of {f16.prompts} answers in llama.cpp" in modelfile
    assert "TEMPLATE" in modelfile


def test_every_size_has_its_price_in_perplexity(exported: ExportReport) -> None:
    sizes = gguf_sizes(demo_model_dir())
    for kind in TYPES:
        file = file_of(exported, kind)
        assert file.agreement is not None
        print(f"{kind}: {file.size_bytes:,} bytes, perplexity {file.agreement.perplexity_change:+.2%}")
        assert abs(file.agreement.perplexity_change) < 0.05
        assert file.size_bytes == pytest.approx(sizes[kind], rel=0.03)


def renamed(folder: Path) -> Path:
    """The demo with an end token that llama.cpp does not know by its text."""
    shutil.copytree(demo_model_dir(), folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        file = folder / name
        file.write_text(file.read_text().replace("<|im_end|>", "<|over|>"))
    return folder


def test_a_file_that_names_another_end_token_does_not_get_its_name(tmp_path: Path) -> None:
    order = order_for(tmp_path / "out", source=str(renamed(tmp_path / "renamed")))
    whole = export(msgspec.structs.replace(order, out=str(tmp_path / "whole")), silent)
    found = file_of(whole, "f16").agreement
    assert found is not None
    assert found.stops
    with staging_of(order) as staging:  # as an attempt would leave it whose writer names the wrong token
        staging.result.mkdir()
        file = staging.result / "demo.F16.gguf"
        shutil.copyfile(tmp_path / "whole" / "demo.F16.gguf", file)
        field = GGUFReader(file, "r+").fields["tokenizer.ggml.eos_token_id"]
        assert field.parts[field.data[0]][0] == 2
        field.parts[field.data[0]][0] = 1
        field.parts[field.data[0]].flush()
    with pytest.raises(EngineError) as caught:
        export(order, silent)
    assert caught.value.code == "export.differs"
    assert "runs on after the model's stop tokens 2" in caught.value.cause


def spoilt(folder: Path) -> Path:
    """The demo with one matrix turned over."""
    shutil.copytree(demo_model_dir(), folder)
    header = next(t for t in read_headers(folder).tensors if t.name == "model.layers.3.mlp.down_proj.weight")
    with (folder / header.file.name).open("r+b") as file:
        file.seek(header.offset_bytes)
        held = np.frombuffer(file.read(header.data_bytes), dtype=np.uint16)
        file.seek(header.offset_bytes)
        file.write((held ^ 0x8000).tobytes())  # the sign of every number
    return folder


def test_a_file_that_computes_something_else_does_not_get_its_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    order = order_for(out)
    with staging_of(order) as staging:  # as an attempt would leave it that wrote another model's weights
        staging.result.mkdir()
        write_gguf(spoilt(tmp_path / "spoilt"), staging.result / "demo.F16.gguf", "f16")
    with pytest.raises(EngineError) as caught:
        export(order, silent)
    assert (caught.value.code, caught.value.exit_code) == ("export.differs", ExitCode.RUN_FAILED)
    assert "positions, below 95%" in caught.value.cause
    assert not out.exists()
    report = export(msgspec.structs.replace(order, keep_failed=True), silent)
    assert (out / "demo.F16.gguf").is_file()
    assert any("It was kept with --keep-failed" in flag for flag in report.flags)


def test_a_small_type_alone_is_held_to_the_floats_it_is_made_of(tmp_path: Path) -> None:
    report = export(order_for(tmp_path / "out", types=("q4_k_m",)), silent)
    assert any(flag.startswith("Before quantising: the same next token in 100.0%") for flag in report.flags)
    assert [path.name for path in (tmp_path / "out").glob("*.gguf")] == ["demo.Q4_K_M.gguf"]


def test_an_adapter_is_compared_on_every_size_of_its_base(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    factors = {}
    for name in ("q_proj", "v_proj"):
        module = f"model.layers.1.self_attn.{name}"
        rows, width = next(t.shape for t in read_headers(demo_model_dir()).tensors if t.name == f"{module}.weight")
        factors[f"{module}.lora_A.weight"] = draws.standard_normal((2, width)) * 0.05
        factors[f"{module}.lora_B.weight"] = draws.standard_normal((rows, 2)) * 0.05
    adapter = write_adapter(tmp_path / "adapter", factors, base=demo_model_dir())
    kinds = ("f16", "q4_k_m")
    order = order_for(
        tmp_path / "out", "ollama", source=str(adapter), base=str(demo_model_dir()), types=kinds, adapter=True
    )
    report = export(order, silent)
    f16, small = (file_of(report, kind).agreement for kind in kinds)
    assert f16 is not None
    assert small is not None
    assert small.largest_logit_difference > 10 * f16.largest_logit_difference, "each has figures of its own"
    assert file_of(report, "adapter").agreement == f16
    for kind, found in zip(kinds, (f16, small), strict=True):
        modelfile = (tmp_path / "out" / f"Modelfile.{kind.upper()}").read_text()
        assert (f"Stop tokens ended {found.ended} of {found.prompts} answers" in modelfile) is found.stops
