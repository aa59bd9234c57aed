"""A longer window: chosen by measuring, interrupted, resumed, checked, and loaded by plain transformers."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engine.context.certificate import read_certificate
from engine.extension.staging import DECISION, staging_folder
from engine.resources import demo_model_dir
from tests.support.cli import cli, command, environment, wait_for

RESULT = {
    "source", "output", "method", "context_before", "context_after", "factors", "training", "report", "portability",
}  # fmt: skip
SMALL = ("--quick", "--prompts", "1", "--json")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.slow
def test_an_interrupted_choice_goes_on_and_ends_in_exactly_the_promised_json(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("extend", "demo", str(out), "--context", "2x", "--among", "yarn,linear")
    process = subprocess.Popen(
        command(*words, *SMALL[:-1]),
        env=environment(**ONE_THREAD),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    log = staging_folder(out) / "race.jsonl"
    wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") > 1, "something was measured", seconds=300)
    process.send_signal(signal.SIGINT)
    told, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert told == ""
    assert "Traceback" not in err
    assert f"scaler-wizard extend demo {out} --resume" in err
    assert not out.exists()
    assert not (staging_folder(out) / DECISION).exists(), "it was interrupted before the choice"

    measured = log.read_bytes()
    result = cli("extend", "demo", str(out), "--resume", "--json", env=ONE_THREAD, seconds=600)
    assert result.code == 0, result.err
    document = result.json
    assert set(document) == RESULT
    assert document["method"] == "yarn", "linear damages short text at once"
    assert (document["context_before"], document["context_after"]) == (256, 512)
    assert document["training"] is None
    assert document["factors"]["divisors"][-1] == pytest.approx(2.0)
    assert set(document["report"]) == {"perplexity", "needle", "short_regression"}
    assert set(document["report"]["perplexity"]) >= {"256", "512"}
    assert all(0 <= share <= 1 for cells in document["report"]["needle"].values() for share in cells.values())
    assert document["report"]["short_regression"]["change"] < 0.5
    assert {one["verdict"] for one in document["portability"].values()} == {"exact"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"], "nothing is left beside the output"
    certificate = read_certificate(out)
    assert certificate is not None
    assert certificate.race is not None
    assert certificate.race.decided is not None
    kept = {row.method for row in certificate.race.rows}
    assert kept == {"none", "yarn", "linear"}
    assert certificate.report is not None
    assert {row.report.seed for row in certificate.race.rows}.isdisjoint({certificate.report.seed})
    assert any("chosen on those of" in note for note in certificate.report.notes)
    assert measured, "the second attempt went on from the first one's log"


@pytest.mark.slow
def test_the_folder_is_loaded_by_plain_transformers_and_generates_across_the_old_window(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli(
        "extend", "demo", str(out), "--context", "1k", "--method", "yarn", *SMALL[:-1], env=ONE_THREAD, seconds=600
    )
    assert result.code == 0, result.err
    for expected in ("Verdict:", "equal the formula", "equals recomputation", "Who reads it", "needle", "Short text"):
        assert expected in result.out
    assert (out / "model.safetensors").samefile(demo_model_dir() / "model.safetensors")
    certificate = read_certificate(out)
    assert certificate is not None
    assert certificate.check is not None
    assert certificate.check.cache_equal is True
    assert certificate.report is not None
    assert certificate.report.short is not None
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert model.config.max_position_embeddings == 1024
    assert generated(model, cached=True) == generated(model, cached=False)


def generated(model: Any, *, cached: bool) -> list[int]:
    """24 greedy tokens that begin 8 before the old window's end."""
    import torch

    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(10, 1000, (1, 248), generator=generator)
    with torch.no_grad():
        tokens = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=24,
            min_new_tokens=24,
            do_sample=False,
            use_cache=cached,
        )
    return [int(token) for token in tokens[0, 248:]]


@pytest.mark.slow
def test_eval_measures_a_model_and_writes_its_report_and_its_page(tmp_path: Path) -> None:
    report, page = tmp_path / "report.json", tmp_path / "page.html"
    words = ("eval", "demo", "--lengths", "128,256", "--depths", "2", "--prompts", "1", "--out", str(report))
    env = {**ONE_THREAD, "SCALER_WIZARD_HOME": str(tmp_path / "home")}
    result = cli(*words, "--html", str(page), "--json", env=env, seconds=600)
    assert result.code == 0, result.err
    document = result.json
    assert {"model", "window", "verdict", "effective_length", "perplexity", "needle", "report"} <= set(document)
    assert set(document["perplexity"]) == {"128", "256"}
    assert document["window"] == document["original"] == 256
    assert json.loads(report.read_text())["perplexity"][0]["length"] == 128
    assert "<h2>Length</h2>" in page.read_text()
    assert "http" not in page.read_text().replace("http-equiv", ""), "nothing is loaded from anywhere"
    assert not list((tmp_path / "home").rglob("*.jsonl")), "the log goes when it is complete"
