"""`adapters list|inspect|mix|test` on the command line: text, JSON, exit codes and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.adapters import identity
from engine.adapters.folder import read_adapter
from engine.adapters.origin import write_origin
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run
from scaler_tui.cli import main
from scaler_tui.commands.adapters_mix import split_weight
from tests.support.adapter_files import DOWN1, HIDDEN, Q0, factors, write_adapter, write_base, write_packed_base


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, a plain, a DoRA adapter, and a run that left one."""
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "home"))
    base = write_base(tmp_path / "base")
    norms = {f"{Q0}.lora_magnitude_vector": np.linalg.norm(base[f"{Q0}.weight"], axis=1) * 1.1}
    write_adapter(tmp_path / "plain", {**factors(Q0, 2, seed=0), **factors(DOWN1, 2, seed=1)}, tmp_path / "base")
    write_adapter(tmp_path / "dora", {**factors(Q0, 2, seed=2), **norms}, tmp_path / "base", use_dora=True)
    write_origin(tmp_path / "plain", tmp_path / "base", name="my/base", revision="c0ffee")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert main(["adapters", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["adapters", *words]) == 0
    return capsys.readouterr().out


def test_list_names_those_of_runs_and_of_folders(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = create_run(JobSpec(), base=place)
    write_adapter(run_dir / "output" / "adapter", factors(Q0, 2, seed=5), place / "base")
    write_adapter(place / "more" / "broken", {f"{Q0}.lora_A.weight": np.zeros((2, 3))})
    found = told(capsys, "list", "more", "plain")["adapters"]
    assert [one["name"] for one in found] == [run_dir.name, "broken", "plain"]
    assert (found[2]["kind"], found[2]["rank"], found[2]["matrices"]) == ("LoRA", 2, 2)
    assert "adapter.damaged" in found[1]["problem"]
    text = said(capsys, "list", "plain")
    assert run_dir.name in text
    assert "LoRA" in text
    assert told(capsys, "list", "nowhere", code=2)["error"]["code"] == "adapter.unknown"
    assert told(capsys, "inspect", run_dir.name[-4:])["kind"] == "LoRA"


def test_inspect_says_base_revision_and_norms(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = told(capsys, "inspect", "plain")
    assert (report["kind"], report["revision"], report["belongs"]) == ("LoRA", "c0ffee", True)
    assert len(report["fingerprint"]) == 64
    assert [one["module"] for one in report["per_matrix"]] == [Q0, DOWN1]
    text = said(capsys, "inspect", "plain")
    for word in ("LoRA, rank 2", "revision c0ffee", "found in", "layer", "down_proj, q_proj"):
        assert word in text
    assert Q0 in said(capsys, "inspect", "dora", "--matrices")


def test_mix_writes_an_adapter_and_says_the_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = told(capsys, "mix", "plain=0.5", "dora=-1", "--out", "out")
    assert report["weights"] == [0.5, -1.0]
    assert report["identity_error"] <= 1e-5
    assert report["relative_error"] <= 1e-5
    assert {one["module"] for one in report["layers"]} == {Q0, DOWN1}
    assert read_adapter(place / "out").config.dora
    again = told(capsys, "mix", "plain", "--out", "out", code=2)["error"]
    assert (again["code"], "--force" in again["next_step"]) == ("adapter.out_exists", True)
    text = said(capsys, "mix", "plain", "dora", "--method", "svd", "--rank", "1", "--out", "out", "--force")
    for word in (
        "svd: 1 x plain, 1 x dora",
        "rank 1",
        "of the true weighted sum",
        "Self-test",
        "largest error",
        "Next",
    ):
        assert word in text
    ties = said(capsys, "mix", "plain", "dora", "--method", "ties", "--out", "ties", "--no-test")
    assert "which ties is not" in ties
    assert "of what ties gives is lost at rank" in ties
    assert "Self-test" not in ties


def test_mix_makes_a_whole_model_when_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = told(capsys, "mix", "plain", "dora=0.5", "--merged", "--method", "dare", "--out", "model")
    assert record["merge"]["changed"] == 2
    assert (place / "model" / "model.safetensors").is_file()
    refused = told(capsys, "mix", "plain", "--merged", "--method", "svd", "--rank", "2", "--out", "no", code=2)
    assert "no rank" in refused["error"]["what"]


def test_a_score_on_a_base_in_4_bits_says_what_to_give_instead(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_packed_base(place / "packed")
    write_adapter(place / "tuned", factors(Q0, 2, seed=0), place / "packed")
    for words in (("tuned",), ("tuned", "--base", "packed")):
        error = told(capsys, "score", *words, "--data", "demo", code=2)["error"]
        assert error["code"] == "adapter.packed_base"
        assert "16-bit model" in error["next_step"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("mix", "plain", "nowhere", "--out", "x"), "adapter.unknown"),
        (("mix", "plain=high", "--out", "x"), "usage"),
        (("mix", "plain=101", "--out", "x"), "usage"),
        (("mix", "plain", "--rank", "-1", "--out", "x"), "usage"),
        (("mix", "plain", "--density", "2", "--out", "x"), "usage"),
        (("mix", "plain", "--rank", "99999999999", "--out", "x"), "usage"),
        (("mix", "plain", "--method", "svd", "--out", "x"), "adapter.mix"),
        (("mix", "plain", "plain=-1", "--method", "linear", "--out", "x"), "adapter.mix"),
        (("mix", "plain", "--out", "base"), "adapter.out_exists"),
        (("mix", "plain", "--base", "other", "--out", "x"), "adapter.other_base"),
        (("test", "plain", "--base", "other"), "adapter.other_base"),
        (("inspect", "base"), "adapter.config"),
        (("mix", "--out", "x"), "usage"),
    ],
)
def test_bad_input_is_refused_with_a_way_out(
    place: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: str
) -> None:
    write_base(place / "other", seed=1)
    error = told(capsys, *words, code=2)["error"]
    assert error["code"] == code
    assert error["next_step"]
    assert not (place / "x").exists()


def test_the_self_test_fails_with_its_own_exit_code(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(capsys, "test", "plain", "dora")["passed"] is True
    assert "gives itself back" in said(capsys, "test", "dora")
    monkeypatch.setattr(identity, "TOLERANCE", 1e-12)  # below what float32 can store of magnitudes
    monkeypatch.setattr(identity, "_ROUNDING", 0.0)
    found = told(capsys, "test", "plain", "dora", code=5)
    assert [one["passed"] for one in found["adapters"]] == [True, False]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("style", ("style", 1.0)), ("style=0.5", ("style", 0.5)), ("style=-2", ("style", -2.0)),
        ("C:/style:2", ("C:/style:2", 1.0)), ("a=b=0.25", ("a=b", 0.25)),
    ],
)  # fmt: skip
def test_weights_are_read_off_the_end_of_a_word(text: str, wanted: tuple[str, float]) -> None:
    assert split_weight(text) == wanted


def test_a_folder_whose_name_looks_like_a_weight_is_itself(place: Path) -> None:
    write_adapter(place / "odd=2", {f"{Q0}.lora_A.weight": np.zeros((2, HIDDEN))})
    assert split_weight("odd=2") == ("odd=2", 1.0)
