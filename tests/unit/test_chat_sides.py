"""Words like "base", a run, a folder, as sides of a chat; and what of a run is taken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engine.errors import EngineError, ExitCode
from engine.jobs import checkpoints
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run
from engine.resources import demo_model_dir
from scaler_tui.chat_sides import ChatAsked, can_chat, chat_sides, of_run_with_base

DEMO = demo_model_dir()
ROOT = Path(__file__).resolve().parents[2]


def adapter(folder: Path, base: str = str(DEMO)) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))
    return folder


def run(task: str = "qlora") -> Path:
    return create_run(msgspec.convert({"task": task, "model": {"source": "demo"}}, JobSpec))


def checkpoint(run_dir: Path, step: int, name: str = "adapter_config.json") -> None:
    with checkpoints.saving(run_dir, step) as folder:
        (folder / name).write_text("{}")


def names(asked: ChatAsked) -> list[str]:
    return [side.name for side in chat_sides(asked).sides]


def test_a_run_is_its_adapter_on_the_base_as_it_was_trained() -> None:
    run_dir = run()
    adapter(run_dir / "output/adapter")
    found = chat_sides(ChatAsked(run_dir.name, compare=("base",)))
    base, tuned = found.sides
    assert found.run_dir == run_dir
    assert (base.name, base.folder, base.base) == ("base", str(DEMO.resolve()), "")
    assert (tuned.name, tuned.folder, tuned.base) == (run_dir.name, str(run_dir / "output/adapter"), base.folder)
    assert base.quantization == tuned.quantization == "nf4"
    assert tuned.notes == ("the base in nf4, as it was trained",)


def test_full_precision_is_taken_for_every_side_when_it_is_asked_for() -> None:
    run_dir = run()
    adapter(run_dir / "output/adapter")
    found = chat_sides(ChatAsked(str(run_dir), compare=("base",), quantization="none"))
    assert {side.quantization for side in found.sides} == {"none"}
    assert all("nf4" not in note for side in found.sides for note in side.notes)


def test_of_an_unfinished_run_the_newest_checkpoint_is_taken_and_named() -> None:
    run_dir = run("lora")
    assert not can_chat(run_dir)
    with pytest.raises(EngineError, match="no model, adapter or checkpoint yet") as nothing:
        chat_sides(ChatAsked(str(run_dir)))
    assert "scaler-wizard checkpoint" in nothing.value.next_step
    checkpoint(run_dir, 20)
    checkpoint(run_dir, 40)
    (side,) = chat_sides(ChatAsked(str(run_dir))).sides
    assert side.notes == ("unfinished: the checkpoint of step 40",)
    assert side.folder.endswith("checkpoints/step-00000040")
    assert can_chat(run_dir)
    adapter(run_dir / "output/adapter")
    (side,) = chat_sides(ChatAsked(str(run_dir))).sides
    assert side.notes == ()


def test_checkpoints_that_hold_only_what_learns_are_refused_with_the_way_out() -> None:
    run_dir = run("lora")
    checkpoint(run_dir, 20, "trained.safetensors")
    with pytest.raises(EngineError) as refused:
        chat_sides(ChatAsked(str(run_dir)))
    assert refused.value.code == "run.no_model"
    assert f"scaler-wizard stop {run_dir.name}" in refused.value.next_step


def test_an_adapter_trained_for_a_longer_window_stands_on_the_runs_own_base() -> None:
    run_dir = run("lora")
    adapter(run_dir / "output/adapter")
    (run_dir / "context/model").mkdir(parents=True)
    (run_dir / "context/model/config.json").write_text("{}")
    (side,) = chat_sides(ChatAsked(str(run_dir))).sides
    assert side.base == str(run_dir / "context/model")


def test_a_whole_model_of_a_run_is_compared_with_what_it_was_made_from() -> None:
    run_dir = run("lora")
    (run_dir / "output/model").mkdir(parents=True)
    (run_dir / "output/model/config.json").write_text("{}")
    base, made = chat_sides(ChatAsked(str(run_dir), compare=("base",))).sides
    assert (base.folder, base.base) == (str(DEMO.resolve()), "")
    assert (made.folder, made.base) == (str(run_dir / "output/model"), "")
    assert of_run_with_base(run_dir).compare == ()  # a second model costs memory; nobody asked for it


def test_adapters_are_put_on_the_base_of_the_model_that_is_named(tmp_path: Path) -> None:
    first, second = adapter(tmp_path / "first"), adapter(tmp_path / "second", base="/elsewhere")
    sides = chat_sides(ChatAsked("demo", adapters=(str(first), str(second)))).sides
    assert [side.name for side in sides] == ["demo", "first", "second"]
    assert {side.model for side in sides} == {str(DEMO)}
    run_dir = run()
    adapter(run_dir / "output/adapter")
    tuned, other = chat_sides(ChatAsked(str(run_dir), adapters=(str(first),))).sides
    assert other.base == tuned.base
    assert other.quantization == "nf4"


def test_two_sides_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one, two = adapter(tmp_path / "a/tuned"), adapter(tmp_path / "b/tuned")
    assert names(ChatAsked(str(one), compare=(str(two), "base"))) == ["base", "tuned", "tuned (2)"]


def test_an_adapter_whose_base_is_not_here_says_how_to_name_it(tmp_path: Path) -> None:
    lost = adapter(tmp_path / "lost", base="/elsewhere")
    with pytest.raises(EngineError) as refused:
        chat_sides(ChatAsked(str(lost)))
    assert refused.value.code == "adapter.no_base"
    assert "--base" in refused.value.next_step
    (side,) = chat_sides(ChatAsked(str(lost), base="demo")).sides
    assert side.base == str(DEMO.resolve())


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (ChatAsked("demo", compare=("base",)), "chat.no_base"),
        (ChatAsked("demo", adapters=("/nowhere",)), "chat.no_adapter"),
        (ChatAsked("nosuchmodel"), "model.not_found"),
        (ChatAsked("demo", compare=("demo",) * 6), "chat.many_sides"),
    ],
)
def test_what_cannot_be_talked_to_is_refused_with_a_next_step(asked: ChatAsked, code: str) -> None:
    with pytest.raises(EngineError) as refused:
        chat_sides(asked)
    assert refused.value.code == code
    assert refused.value.next_step


def test_a_line_that_is_no_request_ends_the_process_in_words_while_its_input_stays_open() -> None:
    command = [sys.executable, "-m", "engine.chat"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"nonsense\n")
        process.stdin.flush()
        assert process.wait(timeout=120) == int(ExitCode.BAD_INPUT)
        assert json.loads(process.stdout.read())["error"]["code"] == "chat.line"
