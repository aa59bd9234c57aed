"""The extended folder: weights linked or copied, the window raised everywhere it is written, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from engine.context.certificate import Certificate, encode_certificate, read_certificate
from engine.context.factors import read_factors
from engine.context.plan import ContextPlan
from engine.context.planner import plan_context
from engine.errors import EngineError
from engine.extension import folder as folder_module
from engine.extension.folder import Links, copied_bytes, write_extended
from engine.resources import demo_model_dir


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo model."""
    folder = tmp_path / "model"
    shutil.copytree(demo_model_dir(), folder)
    return folder


@pytest.fixture
def plan(model: Path) -> ContextPlan:
    return plan_context(json.loads((model / "config.json").read_text()), 1024, "yarn")


@pytest.mark.parametrize(
    ("links", "same_file", "is_link"), [("hard", True, False), ("copy", False, False), ("symbolic", True, True)]
)
def test_weights_are_linked_or_copied_and_the_rest_is_new(
    model: Path, plan: ContextPlan, tmp_path: Path, links: Links, same_file: bool, is_link: bool
) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    out = tmp_path / "deep" / "out"
    write_extended(model, out, plan, links=links)
    weights = out / "model.safetensors"
    assert weights.samefile(model / "model.safetensors") is same_file
    assert weights.is_symlink() is is_link
    assert weights.read_bytes() == before["model.safetensors"]
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 1024
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 1024
    assert (out / "SOURCE_README.md").is_file()
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before, "the source is only read"
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"], "nothing is left beside it"


def test_links_to_a_cached_model_are_those_of_the_files_themselves(
    model: Path, plan: ContextPlan, tmp_path: Path
) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (model / "model.safetensors").rename(blobs / "abc")
    (model / "model.safetensors").symlink_to(blobs / "abc")
    write_extended(model, tmp_path / "out", plan)
    assert not (tmp_path / "out" / "model.safetensors").is_symlink()
    assert (tmp_path / "out" / "model.safetensors").samefile(blobs / "abc")


def test_where_links_are_impossible_weights_are_copied(
    model: Path, plan: ContextPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(folder_module.os, "link", refuse)
    write_extended(model, tmp_path / "out", plan)
    assert not (tmp_path / "out" / "model.safetensors").samefile(model / "model.safetensors")


def test_a_full_disk_leaves_nothing_and_says_so(
    model: Path, plan: ContextPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder_module.shutil, "copyfile", full)
    with pytest.raises(EngineError) as refused:
        write_extended(model, tmp_path / "out", plan, links="copy")
    assert refused.value.code == "disk.full"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_nothing_is_overwritten(model: Path, plan: ContextPlan, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(EngineError, match="exists"):
        write_extended(model, tmp_path / "out", plan)
    assert list((tmp_path / "out").iterdir()) == []


def test_remote_code_is_not_asked_for_where_its_files_stay_behind(
    model: Path, plan: ContextPlan, tmp_path: Path
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "configuration_x.X"}}))
    (model / "configuration_x.py").write_text("")
    write_extended(model, tmp_path / "out", plan)
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not list((tmp_path / "out").glob("*.py"))


def test_copies_are_counted_and_links_are_free(model: Path, tmp_path: Path) -> None:
    size = (model / "model.safetensors").stat().st_size
    assert copied_bytes(model, tmp_path / "out", "copy") == size
    assert copied_bytes(model, tmp_path / "out", "hard") == 0
    assert copied_bytes(model, tmp_path / "out", "symbolic") == 0


# ── the certificate and files of factors ──────────────────────────────────────────────────────────────────────────
def test_a_certificate_gives_the_plan_back(plan: ContextPlan, tmp_path: Path) -> None:
    certificate = Certificate(source="demo", plan=plan)
    (tmp_path / "extension.json").write_bytes(encode_certificate(certificate))
    assert read_certificate(tmp_path) == certificate
    assert read_certificate(tmp_path / "nowhere") is None


def test_factors_are_read_from_every_form(plan: ContextPlan, tmp_path: Path) -> None:
    scaling = plan.scaled.scaling
    (tmp_path / "extension.json").write_bytes(encode_certificate(Certificate(source="demo", plan=plan)))
    assert read_factors(tmp_path).long == scaling.divisors
    assert read_factors(tmp_path).attention_factor == scaling.attention_factor
    config = {"rope_parameters": {"long_factor": [1, 2.5], "short_factor": [1, 1], "attention_factor": 1.2}}
    texts = {
        "bare.json": ('{"long_factor": [1, 2.5], "short_factor": [1, 2.5]}', (1.0, 2.5), (), None),
        "config.json": (json.dumps(config), (1.0, 2.5), (1.0, 1.0), 1.2),
        "list.json": ("[1, 2.5]", (1.0, 2.5), (), None),
        "columns.csv": ("factor\n1\n2.5\n", (1.0, 2.5), (), None),
        "row.csv": ("# found\n1, 2.5", (1.0, 2.5), (), None),
    }
    for name, (text, long, short, m) in texts.items():
        (tmp_path / name).write_text(text)
        found = read_factors(tmp_path / name)
        assert (found.long, found.short, found.attention_factor) == (long, short, m), name


def test_a_searchs_log_gives_its_best_set_also_when_its_last_line_is_cut(tmp_path: Path) -> None:
    trial = {
        "evaluation": 1, "origin": "mutation", "divisors": [1.0, 4.0], "attention_factor": 1.1, "critical_pair": 1,
        "needle_nll": 0.1, "text_nll": 2.0, "score": 0.3, "seconds": 1.0,
    }  # fmt: skip
    lines = [json.dumps({"version": 1})]
    lines += [json.dumps({**trial, "divisors": [1.0, 9.0], "score": 0.5}), json.dumps(trial), '{"evaluation": 3, "ori']
    (tmp_path / "search.jsonl").write_text("\n".join(lines))
    found = read_factors(tmp_path / "search.jsonl")
    assert (found.long, found.attention_factor, found.critical_pair) == ((1.0, 4.0), 1.1, 1)


@pytest.mark.parametrize("text", ["", "one,two", '{"a": 1}', "[]", '{"long_factor": ["x"]}', '"text"', "{broken"])
def test_what_holds_no_factors_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    for path in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(EngineError) as refused:
            read_factors(path)
        assert refused.value.code == "context.factors"
        assert "number per pair" in refused.value.next_step
