"""[export] at the end of a run: written for other programs, noted on the card, gone on with after a kill."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import msgspec
import pytest

from engine.jobs import events as ev
from engine.jobs.card_io import read_card, write_card
from scaler_tui.cli import main
from tests.train.conftest import RunWorker, SpecMaker

KILLED_AT_THE_SECOND = """
import os, signal, sys
begun = []
def watch(event, arguments):
    if event == "subprocess.Popen" and "engine.export.work" in list(arguments[1]):
        begun.append(1)
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""


@pytest.mark.slow
def test_a_run_is_exported_as_its_spec_asks_through_a_kill_and_a_failure(
    make_spec: SpecMaker,
    run_worker: RunWorker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GGUF_PYTHON", "/nowhere/python")  # what llama.cpp says is `make test-gguf`'s
    spec = make_spec(
        "lora", training={"max_steps": 2}, evaluation={"exact_match_rows": 0}, export={"to": ["gguf", "hf", "ollama"]}
    )
    killed = run_worker(spec, preamble=KILLED_AT_THE_SECOND)
    assert killed.exit_code == -signal.SIGKILL
    place = killed.run_dir / "output" / "export"
    assert [path.name for path in place.iterdir() if not path.name.startswith(".")] == ["hf"]
    weights = (place / "hf" / "model.safetensors").stat()

    named = (place / "hf").stat().st_ino
    card = read_card(killed.run_dir)
    write_card(killed.run_dir, msgspec.structs.replace(card, exports=()))  # as a kill before the note leaves it
    (place / ".ollama.order.json").unlink()
    (place / ".ollama.order.json").mkdir()  # in the way
    done = run_worker(killed.run_dir)
    assert done.end.outcome == "finished", done.log
    assert len(done.of(ev.Step)) == 2, "nothing is trained again"
    assert (place / "hf" / "model.safetensors").stat().st_ino == weights.st_ino
    assert (place / "hf").stat().st_ino == named, "nor exported: its record says that it is finished"
    assert [event.report.destination for event in done.of(ev.Exported)] == ["hf", "hf", "gguf"]
    card = read_card(done.run_dir)
    assert [report.destination for report in card.exports] == ["hf", "gguf"]
    assert any("export to ollama failed" in note and "export ollama" in note for note in card.notes)

    (folder,) = card.exports[0].files
    assert folder.path == "output/export/hf", "relative, so that the run can be moved"
    assert folder.agreement is not None, folder.not_verified
    assert folder.agreement.runtime.startswith("transformers 5")
    assert folder.agreement.same_top_token >= 0.95
    assert folder.agreement.same_tokens
    assert folder.agreement.same_prompt
    readme = (place / "hf" / "README.md").read_text()
    assert f"`{card.data_sha256}`" in readme
    assert "license: unknown" in readme
    assert str(done.run_dir.parent) not in readme
    config = json.loads((place / "hf" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "not verified" not in readme
    (file,) = card.exports[1].files
    assert file.kind == "q8_0"
    assert "/nowhere/python" in file.not_verified

    (place / ".ollama.order.json").rmdir()
    assert main(["export", "ollama", str(done.run_dir), "--no-verify", "--no-create", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert Path(report["files"][0]["path"]).read_text().count("PARAMETER stop") == 1
    assert [one.destination for one in read_card(done.run_dir).exports] == ["hf", "gguf", "ollama"]
