"""Whatever is typed: a sentence that says what is wrong and what to do, the documented code, and never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.resources import demo_model_dir
from scaler_tui.cli import main

Run = Callable[..., tuple[int, str, str]]

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 128,
}


@pytest.fixture(autouse=True)
def litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder full of things that look right and are not; it is the current folder."""
    place = tmp_path / "litter"
    place.mkdir()
    monkeypatch.chdir(place)
    for name in ("empty", "pickle", "remote", "damaged", "not-json", "encoder"):
        (place / name).mkdir()
    (place / "pickle" / "config.json").write_text(json.dumps(LLAMA))
    (place / "pickle" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (place / "remote" / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}})
    )
    (place / "encoder" / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 64})
    )
    (place / "not-json" / "config.json").write_text("{")
    shutil.copy(demo_model_dir() / "config.json", place / "damaged" / "config.json")
    (place / "damaged" / "model.safetensors").write_bytes((demo_model_dir() / "model.safetensors").read_bytes()[:100])
    (place / "empty.jsonl").write_bytes(b"")
    (place / "blank.jsonl").write_bytes(b"\n\n\n")
    (place / "binary.jsonl").write_bytes(bytes(range(256)) * 8)
    (place / "latin.csv").write_bytes("prompt;completion\nwo;Köln\n".encode("latin-1"))
    (place / "rows.parquet").write_bytes(b"PAR1 is not enough")
    (place / "empty.toml").write_bytes(b"")
    (place / "prose.toml").write_text("this is not toml\n")
    (place / "syntax.toml").write_text('task = "qlora"\n[training]\nepochs =\n')
    (place / "type.toml").write_text('task = "qlora"\n[training]\nepochs = "three"\n')
    (place / "unknown.toml").write_text("[training]\nepoch = 3\n")
    (place / "limit.toml").write_text("[adapter]\nrank = 0\n")
    (place / "conflict.toml").write_text('task = "lora"\n[quantization]\nkind = "nf4"\n')
    (place / "version.toml").write_text("version = 99\n")
    (place / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (place / "no-model.toml").write_text('[model]\nsource = "nobody/nothing"\n')
    (place / "shape-only.toml").write_text('[model]\nsource = "llama-3.2-3b"\n')
    (place / "no-data.toml").write_text('[data]\ntrain = "missing.jsonl"\n')
    (place / "bad-data.toml").write_text('[data]\ntrain = "empty.jsonl"\nheldout = ""\n')
    return place


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


# (arguments, exit code, what the message must name)
BAD: list[tuple[str, int, str]] = [
    ("nonsense", 2, "nonsense"),
    ("docter", 2, "Did you mean doctor?"),
    ("--nonsense", 2, "--nonsense"),
    ("--theme neon", 2, "neon"),
    ("inspect", 2, "MODEL"),
    ("inspect nowhere", 2, "nowhere"),
    ("inspect empty", 2, "config.json"),
    ("inspect pickle", 2, "pickle"),
    ("inspect remote", 2, "modeling_mine.Mine"),
    ("inspect damaged", 2, "model.safetensors"),
    ("inspect not-json", 2, "config.json"),
    ("inspect encoder", 2, "BertForMaskedLM"),
    ("inspect empty.jsonl", 2, "a model is a folder"),
    ("inspect /dev/null/x", 2, "/dev/null/x"),
    ("inspect nobody/nothing", 2, "offline"),
    ("inspect qwen3-9b", 2, "Did you mean"),
    ("inspect \udcff\udcfe", 2, "neither"),
    ("matrix nowhere", 2, "nowhere"),
    ("matrix demo --gpu", 2, "--gpu"),
    ("matrix demo --gpu RTX9999", 2, "RTX 5090"),
    ("matrix demo --gpu 0x24G", 2, "0x24G"),
    ("matrix demo --gpu 2x", 2, "2x"),
    ("matrix demo --explain nothing", 2, "block-expansion"),
    ("matrix demo --goal fame", 2, "long-documents"),
    ("matrix demo --context many", 2, "context"),
    ("matrix demo --context -5", 2, "context"),
    ("matrix demo --budget-usd nan", 2, "budget"),
    ("matrix demo --hardware own --card Voodoo2", 2, "Voodoo2"),
    *((f"{command} demo --card Voodoo2", 2, "Voodoo2") for command in ("matrix", "plan", "estimate")),
    ("matrix demo --card Voodoo2 --gpu RTX4090", 2, "Voodoo2"),
    ("doctor --gpu Voodoo2", 2, "Voodoo2"),
    ("plan nowhere", 2, "nowhere"),
    ("plan demo --approach magic", 2, "magic"),
    ("plan demo --approach full-expansion", 2, "does not carry it out"),
    ("plan llama-3.2-3b --gpu RTX4090", 2, "--data"),
    ("plan demo -o empty.jsonl", 2, "exists already"),
    ("plan demo -o .", 2, "exists already"),
    ("plan demo -o nowhere/spec.toml", 2, "nowhere/spec.toml"),
    ("plan demo --approach lora --method yarn", 2, "--approach context"),
    ("plan demo --approach context", 2, "already reads 256 tokens"),
    ("plan demo --approach context --context 1k --method magic", 2, "yarn"),
    ("plan demo --approach context --context 1k --zero-shot --window pose", 2, "trains nothing"),
    ("plan demo --approach context --context 1k --window wide", 2, "wide"),
    ("mix", 2, "SOURCE"),
    ("mix missing.jsonl --out out.jsonl", 2, "--model"),
    ("mix . --model demo --out nowhere/out.jsonl", 2, "Cannot write nowhere/out.jsonl"),
    ("mix missing.jsonl --model demo --out out.jsonl", 2, "missing.jsonl"),
    ("mix empty.jsonl --model demo --out out.jsonl", 2, "empty"),
    ("mix empty --model demo --out out.jsonl", 2, "no usable document"),
    ("mix empty:0 --model demo --out out.jsonl", 2, "no weight"),
    ("mix empty --model demo --out empty.jsonl", 2, "exists already"),
    ("mix empty --model demo --out out.jsonl --long-share 2", 2, "--long-share"),
    ("mix empty --model demo --out out.jsonl --context long", 2, "32k"),
    ("mix empty --model demo --out out.jsonl --tokens many", 2, "many"),
    ("mix empty --out out.jsonl --model llama-3.2-3b", 2, "tokenizer"),
    ("data", 2, "COMMAND"),
    ("data check", 2, "FILE"),
    ("data check missing.jsonl", 2, "missing.jsonl"),
    ("data check empty.jsonl", 2, "empty"),
    ("data check blank.jsonl", 2, "blank.jsonl"),
    ("data check binary.jsonl", 2, "not text"),
    ("data check empty", 2, "folder"),
    ("data check rows.parquet", 2, "rows.parquet"),
    ("data check demo --model nowhere", 2, "nowhere"),
    ("data check demo --model llama-3.2-3b", 2, "tokenizer"),
    ("data check demo --model damaged", 2, "damaged"),
    ("data check demo --model pickle", 2, "pickle"),
    ("data check demo --max-length 0", 2, "at least 8"),
    ("data check demo --max-length -1", 2, "at least 8"),
    ("data check demo --max-length x", 2, "max-length"),
    ("data check demo --train-on nothing", 2, "completions"),
    ("data check demo --heldout missing.jsonl", 2, "missing.jsonl"),
    *(
        (f"{command} {spec}.toml", 2, named)
        for command in ("run", "start")
        for spec, named in (
            ("missing", "missing.toml"),
            ("empty", "plan demo -o FILE"),
            ("prose", "line 1"),
            ("syntax", "line 3"),
            ("type", "line 3, key 'training.epochs'"),
            ("unknown", "line 2, key 'training.epoch'"),
            ("limit", "line 2, key 'adapter.rank'"),
            ("conflict", "quantization.kind"),
            ("version", "version 99"),
            ("binary", "UTF-8"),
            ("no-model", "nobody/nothing"),
            ("shape-only", "Llama-3.2-3B"),
            ("no-data", "missing.jsonl"),
            ("bad-data", "empty.jsonl is empty"),
        )
    ),
    ("start .", 2, "directory"),
    ("run", 2, "SPEC"),
    *(
        (f"{command} 2020", 2, "no runs yet")
        for command in ("attach", "logs", "pause", "resume", "checkpoint", "stop", "card", "merge")
    ),
    ("logs --worker --follow", 2, "no runs yet"),
    ("pause", 2, "ID"),
]


@pytest.mark.parametrize(
    ("line", "code", "named"), BAD, ids=[line.encode("ascii", "replace").decode() for line, *_ in BAD]
)
def test_a_mistake_is_told_with_what_to_do_about_it(line: str, code: int, named: str, run: Run) -> None:
    found, out, err = run(*line.split())
    assert found == code
    assert out == ""
    assert named in err
    assert err.startswith("scaler-wizard: ")
    assert "Traceback" not in err
    assert "internal error" not in err


JSON_LESS = ("attach", "--nonsense", "--theme")


@pytest.mark.parametrize(
    ("line", "code", "named"),
    [bad for bad in BAD if not bad[0].startswith(JSON_LESS) and "--worker" not in bad[0]],
    ids=lambda value: value.encode("ascii", "replace").decode() if isinstance(value, str) else str(value),
)
def test_with_json_a_mistake_is_one_error_object_on_stdout(line: str, code: int, named: str, run: Run) -> None:
    found, out, err = run(*line.split(), "--json")
    assert found == code
    error = json.loads(out)["error"]
    assert set(error) == {"code", "what", "cause", "next_step"}
    assert all(isinstance(text, str) for text in error.values())
    assert error["what"]
    assert named in " ".join(error.values())
    assert "Traceback" not in out + err
    assert error["code"] != "internal"


def test_a_plan_that_does_not_fit_is_code_4_with_ways_out(run: Run) -> None:
    code, _, err = run("plan", "llama-3.1-70b", "--data", "demo", "--gpu", "8G")
    assert code == 4
    assert "does not fit" in err
    assert "(1)" in err


@pytest.mark.parametrize("home", ["/dev/null/home", "/proc/home"])
def test_a_home_that_cannot_be_written_is_said_and_looking_still_works(
    home: str, run: Run, monkeypatch: pytest.MonkeyPatch, litter: Path
) -> None:
    monkeypatch.setenv("SCALER_WIZARD_HOME", home)
    (litter / "spec.toml").write_text('task = "lora"\n')
    code, _, err = run("start", "spec.toml")
    assert code == 2
    assert home in err
    assert "SCALER_WIZARD_HOME" in err
    for looking in (["runs"], ["doctor"], ["inspect", "demo"], ["matrix", "demo"]):
        assert run(*looking)[0] == 0


def test_every_command_has_help_with_the_exit_codes(run: Run) -> None:
    from scaler_tui.commands import COMMANDS

    for command in [[], *([name] for name in COMMANDS), ["attach"], ["data", "check"]]:
        code, out, _ = run(*command, "--help")
        assert code == 0
        assert "130 interrupted" in out
    assert "relative to" in run("run", "--help")[1]


def test_help_lists_every_question_as_a_flag(run: Run) -> None:
    from engine.advise.questions import flag_name, load_graph

    text = run("matrix", "--help")[1]
    for question in load_graph().questions:
        assert question.id == "model" or flag_name(question) in text


def test_a_flag_is_not_guessed_from_its_beginning(run: Run) -> None:
    code, _, err = run("runs", "--js")
    assert code == 2
    assert "--js" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--goal", "smaller", "--teacher", "/nonexist"), "There is no model in /nonexist"),
        (("--goal", "smaller", "--teacher", "qwen3-8b"), "another tokenizer"),
        (("--goal", "style", "--teacher", "self"), "nothing learns from it"),
    ],
)
def test_a_teacher_that_would_be_left_out_is_refused(run: Run, flags: tuple[str, ...], words: str) -> None:
    code, _, err = run("plan", "demo", "--data", "demo", *flags, "--write", "x.toml")
    assert code == 2
    assert words in err
    assert not Path("x.toml").exists()


def test_a_way_that_nobody_can_teach_has_no_figures(run: Run) -> None:
    code, out, _ = run("matrix", "demo", "--goal", "smaller")
    assert code == 0
    line = next(line for line in out.splitlines() if " distillation " in line)
    assert "no teacher" in line
    assert "fits" not in line
    assert not any(unit in line for unit in ("GiB", "MiB", " h", "min", "$"))


@pytest.mark.parametrize("command", ["matrix", "plan", "estimate"])
def test_a_model_that_is_left_empty_is_asked_for_without_a_flag_that_no_command_has(command: str, run: Run) -> None:
    code, _, err = run(command, "")
    assert code == 2
    assert "Name a folder, a hub id, or demo." in err
    assert "--model" not in err


@pytest.mark.parametrize("command", ["matrix", "plan", "estimate"])
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_an_answer_about_rows_that_are_not_here_says_so_beside_it(
    command: str, more: tuple[str, ...], run: Run, litter: Path
) -> None:
    for named, words in (
        ("missing.jsonl", "There is no file missing.jsonl yet; its size was guessed"),
        ("empty", "empty is a folder, and rows are in a file"),
    ):
        code, out, err = run(command, "demo", "--data", named, *more)
        assert code == 0
        assert words in err
        assert words not in out
    (litter / "rows.jsonl").write_text('{"text": "here"}\n')
    for named in ("rows.jsonl", "demo", "demo-long"):
        code, _, err = run(command, "demo", "--data", named, *more)
        assert code == 0
        assert named not in err
