"""`chat` without a screen: answers on standard output, everything else beside it, saved, in words when it fails."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.jobs.chat_log import Exchange
from engine.jobs.spec import JobSpec
from engine.jobs.store import create_run
from scaler_tui.cli import main
from tests.support.fake_chat import PROGRAM
from tests.support.pty_terminal import PtyTerminal
from tests.unit.test_chat_sides import adapter
from tests.unit.test_hygiene import HEAVY, ROOT, modules_after


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaler_tui.chat_process.PROGRAM", PROGRAM)
    monkeypatch.chdir(ROOT)


def chats(home: Path) -> list[Exchange]:
    (file,) = home.rglob("chats/*.jsonl")
    return [msgspec.json.decode(line, type=Exchange) for line in file.read_bytes().splitlines()]


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_one_prompt_gives_the_answer_alone_on_standard_output(
    capsys: pytest.CaptureFixture[str], own_home: Path
) -> None:
    assert main(["chat", "demo", "--prompt", "hello", "--seed", "5"]) == 0
    out, err = capsys.readouterr()
    assert out == "demo heard hello in turn 1 with seed 5\n"
    assert "loading demo ..." in err
    assert "9 tokens, 18.0 a second" in err
    (saved,) = chats(own_home)
    assert saved.prompt == "hello"
    assert saved.answers[0].sent.endswith("<|im_start|>assistant\n")
    assert saved.sampling.seed == 5


def test_lines_on_standard_input_are_one_conversation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "first\n\nsecond\n")
    assert main(["chat", "demo"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "demo heard first in turn 1 with seed 17",
        "demo heard second in turn 3 with seed 17",
    ]


def test_several_sides_are_told_apart_and_kept_with_their_run(
    capsys: pytest.CaptureFixture[str], own_home: Path
) -> None:
    run_dir = create_run(msgspec.convert({"model": {"source": "demo"}}, JobSpec))
    adapter(run_dir / "output/adapter")
    assert main(["chat", run_dir.name, "--compare", "base", "--prompt", "hello"]) == 0
    out = capsys.readouterr().out
    assert out.index("base:\nbase heard hello") < out.index(f"{run_dir.name}:\n{run_dir.name} heard hello")
    (saved,) = chats(own_home)
    assert next(run_dir.glob("chats/*.jsonl"))
    assert [answer.folder for answer in saved.answers][1] == "output/adapter"


def test_json_is_one_document_for_prompts_and_a_line_for_every_piped_question(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["chat", "demo", "--json", "--prompt", "one", "--prompt", "two"]) == 0
    document: Any = json.loads(capsys.readouterr().out)
    assert [exchange["turn"] for exchange in document["exchanges"]] == [1, 2]
    assert document["sides"][0]["facts"]["window"] == 256
    assert Path(document["saved"]).is_file()
    piped(monkeypatch, "one\ntwo\n")
    assert main(["chat", "demo", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["one", "two"]
    assert err == ""


def test_the_others_answer_beside_a_refused_side_and_the_exit_code_is_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["chat", "demo", "--adapter", str(adapter(tmp_path / "refused"))]
    assert main([*words, "--prompt", "hello"]) == 4
    out, err = capsys.readouterr()
    assert out.startswith("demo heard hello")
    assert "! refused is left out: It does not fit. 9 GB, 1 free. Ask less." in err
    assert "refused took no part in the answers." in err
    assert main([*words, "--prompt", "hello", "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    assert document["exchanges"][0]["answers"][0]["text"].startswith("demo heard hello")
    assert document["error"]["code"] == "chat.no_room"
    for more in ([], ["--json"]):
        piped(monkeypatch, "hello\n")
        assert main([*words, *more]) == 4
        assert "demo heard hello" in capsys.readouterr().out


def test_a_question_that_nobody_can_answer_fails_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "demo", "--prompt", "long"]) == 5
    assert "The conversation fills the window." in capsys.readouterr().err


def test_a_process_that_is_killed_is_explained_and_the_exit_code_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "demo", "--prompt", "crash", "--json"]) == 5
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "chat.failed"
    assert "memory ran out" in error["cause"]
    assert "--quantization nf4" in error["next_step"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--temperature", "-1"],
        ["--top-p", "0"],
        ["--max-new-tokens", "0"],
        ["--temperature", "warm"],
        ["--threads", "999999"],
        ["--full-precision", "--quantization", "nf4"],
    ],
)
def test_settings_that_make_no_sense_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "demo", *flags]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_seed_that_is_none_is_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "demo", "--seed", "x"]) == 2
    assert "x is no seed" in capsys.readouterr().err


def test_a_question_without_any_answer_fails_whichever_it_was_and_the_others_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["chat", "demo", "--json", "--prompt", "long", "--prompt", "hello"]) == 5
    document = json.loads(capsys.readouterr().out)
    assert document["exchanges"][1]["answers"][0]["text"].startswith("demo heard hello")
    assert document["error"]["code"] == "chat.window"
    piped(monkeypatch, "long\nhello\n")
    assert main(["chat", "demo"]) == 5
    assert "demo heard hello" in capsys.readouterr().out


def test_an_answer_is_told_although_the_process_dies_at_the_next_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "demo", "--json", "--prompt", "hello", "--prompt", "crash"]) == 5
    document = json.loads(capsys.readouterr().out)
    assert [exchange["prompt"] for exchange in document["exchanges"]] == ["hello"]
    assert document["error"]["code"] == "chat.failed"


def test_talking_line_by_line_needs_neither_torch_nor_textual() -> None:
    loaded = modules_after(
        "import scaler_tui.chat_process as process\n"
        f"process.PROGRAM = {PROGRAM!r}\n"
        "from scaler_tui.cli import main\n"
        "assert main(['chat', 'demo', '--prompt', 'hello']) == 0\n"
    )
    assert not loaded & (HEAVY | {"textual", "rich", "pydantic"})


def test_a_person_at_a_line_stops_answers_changes_settings_and_leaves(own_home: Path) -> None:
    program = (
        "import sys, scaler_tui.chat_process as process\n"
        f"process.PROGRAM = {PROGRAM!r}\n"
        "from scaler_tui.cli import main\n"
        "sys.exit(main(['--plain', 'chat', 'demo']))\n"
    )
    terminal = PtyTerminal([sys.executable, "-c", program])
    try:
        terminal.read_until(lambda text: b"Type a question" in text)
        for typed, answer in (
            (b"wait\n", b"demo answers"),
            (b"\x03", b"; stopped"),
            (b"/seed 5\n", b"Now seed 5"),
            (b"/temperature warm\n", b"'warm' is no number."),
            (b"/again\n", b"demo answers"),
            (b"\x03", b"; stopped\r\n> "),
            (b"\x03", b"Ctrl+C again leaves"),
            (b"/clear\n", b"A new conversation."),
            (b"b\n", b"demo heard b in turn 1"),
            (b"/template\n", b"<|im_start|>assistant"),
        ):
            before = len(terminal.received)
            terminal.send(typed)
            terminal.read_until(lambda text, begin=before, wanted=answer: wanted in text[begin:])
        terminal.send(b"q\n")
        terminal.process.wait(30)
    finally:
        terminal.close()
    assert terminal.process.returncode == 0
    assert b"demo heard wait in turn 1 with seed 5" in terminal.received
    assert b"\x1b" not in terminal.received
    assert [(one.prompt, one.again, one.answers[0].ended) for one in chats(own_home)] == [
        ("wait", False, "stopped"), ("wait", True, "stopped"), ("b", False, "end")
    ]  # fmt: skip
