"""The JSON that scripts rely on: exactly these keys, exactly these types."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from engine.jobs.spec import JobSpec
from engine.jobs.spec_toml import load_spec
from scaler_tui.cli import main

ROOT = Path(__file__).resolve().parents[2]
APPROACHES = [
    "qlora",
    "lora",
    "lora-large",
    "context",
    "block-expansion",
    "partial-expansion",
    "full-expansion",
    "pretrained-larger",
    "distillation",
]
NUMBER = (int, float)


@pytest.fixture
def document(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command and returns its JSON; nothing but JSON may be on standard output."""

    def run(*words: str, code: int = 0) -> Any:
        assert main([*words, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run


def check(value: dict[str, Any], shape: dict[str, Any]) -> None:
    """Every key of `shape` is there with that type; bool does not pass for a number."""
    for key, kind in shape.items():
        assert key in value, key
        kinds = kind if isinstance(kind, tuple) else (kind,)
        assert isinstance(value[key], kinds), (key, value[key])
        assert bool in kinds or not isinstance(value[key], bool), key


def test_doctor_has_the_promised_keys_and_types(document: Any) -> None:
    machine = document("doctor")
    check(machine, {"gpus": list, "cpu": dict, "ram": dict, "disk": dict, "libraries": dict, "problems": list})
    check(machine["cpu"], {"name": str, "cores": int})
    check(machine["ram"], {"total_bytes": int, "available_bytes": int})
    check(machine["disk"], {"path": str, "free_bytes": int})
    assert 0 < machine["ram"]["available_bytes"] <= machine["ram"]["total_bytes"]
    assert machine["cpu"]["cores"] >= 1
    assert machine["libraries"]["torch"].startswith("2.")
    assert all(version is None or isinstance(version, str) for version in machine["libraries"].values())


def test_doctor_describes_each_simulated_card(document: Any) -> None:
    machine = document("doctor", "--gpu", "2x RTX 3090")
    assert machine["simulated"] is True
    assert len(machine["gpus"]) == 2
    for gpu in machine["gpus"]:
        check(gpu, {"name": str, "vendor": str, "vram_bytes": int, "free_vram_bytes": int, "source": str})
        assert (gpu["vendor"], gpu["source"], gpu["vram_bytes"]) == ("nvidia", "profile", 24 * 1024**3)


def test_the_card_may_stand_before_the_command(document: Any) -> None:
    assert document("--gpu", "2x24G", "doctor")["simulated"] is True


INSPECTED = {
    "architecture": str,
    "family": str,
    "parameters": int,
    "layers": int,
    "hidden_size": int,
    "intermediate_size": int,
    "attention_heads": int,
    "key_value_heads": int,
    "head_dim": int,
    "vocab_size": int,
    "tied_embeddings": bool,
    "context_length": int,
    "norm": str,
    "norm_placement": str,
    "qk_norm": str,
    "rope": dict,
    "moe": (dict, type(None)),
}


@pytest.mark.parametrize("model", ["demo", "llama-3.2-3b", "meta-llama/Llama-3.2-3B", "Qwen/Qwen3-8B"])
def test_inspect_has_the_promised_keys_and_types(document: Any, model: str) -> None:
    check(document("inspect", model), INSPECTED)


def test_inspect_tells_a_known_shape_exactly(document: Any) -> None:
    found = document("inspect", "llama-3.2-3b")
    assert found["parameters"] == 3_212_749_824
    assert (found["layers"], found["hidden_size"], found["key_value_heads"]) == (28, 3072, 8)
    assert found["tied_embeddings"] is True
    assert found["rope"]["kind"] == "llama3"
    assert found["moe"] is None


ROW = {
    "id": str,
    "base_parameters": int,
    "final_parameters": int,
    "effective_capacity": str,
    "verdict": str,
    "vram_bytes": int,
    "ram_bytes": int,
    "disk_bytes": int,
    "hours": dict,
    "cost_usd": dict,
    "performance": str,
    "reason": str,
    "breakdown": dict,
}


@pytest.mark.parametrize(
    "words", [("demo",), ("llama-3.2-3b", "--gpu", "RTX 4090"), ("Qwen/Qwen3-8B", "--gpu", "2x24G")]
)
def test_matrix_has_the_promised_keys_and_types(document: Any, words: tuple[str, ...]) -> None:
    matrix = document("matrix", *words)
    check(matrix, {"model": str, "machine": str, "recommended": str, "approaches": list})
    assert [row["id"] for row in matrix["approaches"]] == APPROACHES
    assert matrix["recommended"] in APPROACHES
    for row in matrix["approaches"]:
        check(row, ROW)
        assert row["verdict"] in ("fits", "tight", "no")
        assert row["performance"]
        assert row["reason"]
        for span in (row["hours"], row["cost_usd"]):
            check(span, {"low": NUMBER, "likely": NUMBER, "high": NUMBER})
            assert 0 <= span["low"] <= span["likely"] <= span["high"]
        device = row["vram_bytes"] or row["ram_bytes"]
        assert sum(row["breakdown"].values()) == pytest.approx(device, abs=len(row["breakdown"]))


def test_matrix_plans_for_the_answered_hardware(document: Any) -> None:
    own = document("matrix", "llama-3.2-3b", "--hardware", "own", "--card", "RTX 4090")
    rented = document("matrix", "llama-3.2-3b", "--hardware", "rented", "--card", "RTX 4090")
    assert own["simulated"]
    assert own["machine"] == rented["machine"] == document("matrix", "llama-3.2-3b", "--gpu", "RTX 4090")["machine"]
    assert rented["approaches"][0]["cost_usd"]["likely"] > own["approaches"][0]["cost_usd"]["likely"]


def test_matrix_follows_the_goal(document: Any) -> None:
    reasoning = document("matrix", "llama-3.2-3b", "--gpu", "A100 80GB", "--goal", "reasoning")
    assert reasoning["recommended"] == "pretrained-larger"


def test_matrix_explains_a_row_by_column(document: Any) -> None:
    explained = document("matrix", "llama-3.2-3b", "--gpu", "24G", "--explain", "qlora")
    check(explained, {"model": str, "machine": str, "id": str, "columns": dict})
    assert explained["id"] == "qlora"
    for line in explained["columns"]["vram"]:
        check(line, {"label": str, "value": str, "formula": str, "source": str})
    assert any(line["label"] == "optimizer" for line in explained["columns"]["vram"])


def test_plan_is_the_spec_that_the_file_holds(
    document: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = document("plan", "demo", "--approach", "qlora", "--name", "a try")
    assert (spec["task"], spec["name"], spec["data"]["train"]) == ("qlora", "a try", "demo")
    assert spec["prediction"]["memory_bytes_likely"] > 0
    assert main(["plan", "demo", "--approach", "qlora", "--name", "a try", "-o", "spec.toml"]) == 0
    written = load_spec(tmp_path / "spec.toml")
    assert isinstance(written, JobSpec)
    assert (written.name, written.adapter.rank) == ("a try", spec["adapter"]["rank"])


def test_plan_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "spec.toml"
    target.write_text("mine")
    assert main(["plan", "demo", "-o", str(target)]) == 2
    assert target.read_text() == "mine"
    assert "exists already" in capsys.readouterr().err


def test_the_commands_told_for_a_spec_can_be_pasted_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mit Umläuten ß").mkdir()
    spec = "mit Umläuten ß/sp ec.toml"
    assert main(["plan", "demo", "-o", spec]) == 0
    told = capsys.readouterr().out.rpartition("Run it: ")[2]
    assert shlex.split(told) == ["scaler-wizard", "run", spec]
    Path("my mix.toml").write_text('task = "extend"\n[context]\nlength = 32768\n')
    assert main(["schedule", "my mix.toml"]) == 2
    told = capsys.readouterr().err.rpartition("Its plan: ")[2].strip().removesuffix(".")
    assert shlex.split(told) == ["scaler-wizard", "estimate", "my mix.toml"]


def test_a_plan_written_elsewhere_names_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").mkdir()
    (tmp_path / "rows.jsonl").write_bytes((ROOT / "tests/data/datasets/chat.jsonl").read_bytes())
    assert main(["plan", "demo", "--data", "rows.jsonl", "-o", "specs/spec.toml"]) == 0
    train = load_spec(tmp_path / "specs" / "spec.toml").data.train
    assert (tmp_path / "specs" / train).resolve() == (tmp_path / "rows.jsonl").resolve()


def test_data_check_counts_rows_and_tokens(document: Any) -> None:
    report = document("data", "check", str(ROOT / "tests/data/datasets/mixed.jsonl"))
    check(report["train"], {"rows_kept": int, "rows_dropped": int, "tokens": int, "trained_tokens": int, "sha256": str})
    assert 0 < report["train"]["trained_tokens"] < report["train"]["tokens"]
    assert any("mixes" in warning for warning in report["warnings"])


def test_data_check_of_the_demo_measures_its_held_out_rows(document: Any) -> None:
    report = document("data", "check", "demo")
    assert report["train"]["rows_dropped"] == 0
    assert report["heldout_rows"] > 0
    assert report["contaminated"] == 0


def test_no_runs_are_an_empty_list(document: Any) -> None:
    assert document("runs") == []


RUN = {
    "id": str,
    "directory": str,
    "state": str,
    "task": str,
    "step": int,
    "total_steps": int,
    "started": (float, type(None)),
    "name": str,
    "model": str,
    "loss": (float, type(None)),
}


def test_runs_have_the_promised_keys_and_types(document: Any) -> None:
    from tests.support.fake_worker import recorded_run

    finished = recorded_run(40, spec=JobSpec(name="one"))
    (run,) = document("runs")
    check(run, RUN)
    assert run["id"] == finished.name
    assert run["directory"] == str(finished)
    assert (run["state"], run["task"], run["step"], run["total_steps"]) == ("finished", "qlora", 40, 40)
    assert run["started"] > 1_700_000_000


def test_a_card_has_before_and_after(document: Any) -> None:
    from engine.jobs.card_io import write_card
    from tests.support.cards import example_card
    from tests.support.fake_worker import recorded_run

    run_dir = recorded_run(40)
    write_card(run_dir, example_card())
    card = document("card", run_dir.name)
    check(card, {"before": dict, "after": dict, "samples": list, "adapter": dict, "predicted": list, "task": str})
    for scores in (card["before"], card["after"]):
        check(scores, {"task_loss": float, "task_tokens": int})
    page = Path(document("card", run_dir.name, "--html")["html"])
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html")


def test_log_lines_are_one_object_each(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.support.fake_worker import recorded_run

    run_dir = recorded_run(40)
    assert main(["logs", run_dir.name[:12], "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) > 3
    for line in lines:
        check(line, {"time": float, "level": str, "message": str})


def test_a_control_of_a_finished_run_is_refused_as_an_error_object(document: Any) -> None:
    from tests.support.fake_worker import recorded_run

    run_dir = recorded_run(10)
    for command in ("pause", "checkpoint", "stop", "resume"):
        error = document(command, run_dir.name, code=2)["error"]
        check(error, {"code": str, "what": str, "cause": str, "next_step": str})
        assert run_dir.name in error["what"]
