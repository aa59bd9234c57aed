"""`extend` and `eval` as a stranger meets them: what each method would be, what is refused, nothing overwritten."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.context.methods import METHODS
from engine.extension.staging import staging_folder
from engine.resources import demo_model_dir
from scaler_tui.cli import main
from tests.support.cli import cli, environment

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo model, to be sure that nobody touches it."""
    folder = tmp_path / "model"
    shutil.copytree(demo_model_dir(), folder)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in this process: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        code = main([*map(str, words)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def litter(folder: Path) -> list[str]:
    """Everything beside the model."""
    return sorted(path.name for path in folder.iterdir() if path.name != "model")


def with_config(model: Path, **changes: Any) -> None:
    """Change the model's config; None removes a key."""
    path = model / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


# ── the dry run ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_dry_run_shows_every_method_and_writes_nothing(run: Run, model: Path) -> None:
    code, out, _ = run("extend", model, "--context", "1k", "--dry-run")
    assert code == 0
    for name in METHODS:
        assert name in out
    for expected in ("256 to 1,024 tokens", "exact everywhere", "not written to a folder", "by formula", "Nothing was"):
        assert expected in out
    assert litter(model.parent) == []


def test_a_dry_run_as_json_has_every_factor_and_reader(run: Run, model: Path) -> None:
    code, out, _ = run("extend", model, "--context", "4x", "--dry-run", "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["context_before"], document["context_after"]) == (256, 1024)
    methods = {one["id"]: one for one in document["methods"]}
    assert set(methods) == set(METHODS)
    assert methods["linear"]["factors"]["divisors"] == [4.0] * 16
    assert methods["yarn"]["factors"]["attention_factor"] == pytest.approx(1.1386, abs=1e-4)
    assert methods["yarn"]["portability"]["llama.cpp"]["verdict"] == "exact"
    assert methods["dynamic"]["why_not"]
    assert methods["longrope2"]["factors"] is None
    assert document["fits"] is True
    assert document["measuring_seconds"] > 0


def test_a_named_method_shows_its_notes_and_readers(run: Run) -> None:
    code, out, _ = run(
        "extend", "qwen3-8b", "--context", "128k", "--method", "llama3", "--dry-run", "--gpu", "RTX 4090"
    )
    assert code == 0
    assert "a GGUF of qwen3 has no scaling" in out
    assert "SIM" in out


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "--context 32k"),
        (["--context", "long"], "not a length"),
        (["--context", "128"], "reads 256 tokens already"),
        (["--context", "1x"], "reads 256 tokens already"),
        (["--context", "1M"], "at most 64 times"),
        (["--context", "900M"], "beyond what rotary angles"),
        (["--context", "1k", "--method", "yran"], "Did you mean yarn"),
        (["--context", "1k", "--method", "dynamic"], "not written to a folder"),
        (["--context", "1k", "--method", "abf", "--theta", "100"], "cannot be 100"),
        (["--context", "1k", "--method", "yarn", "--theta", "1e6"], "--theta belongs to"),
        (["--context", "1k", "--factors", "/no/such"], "Factors cannot be read"),
        (["--context", "1k", "--method", "yarn", "--factors", "x"], "--factors belongs to"),
        (["--context", "1k", "--method", "yarn", "--search-minutes", "5"], "--search-minutes belongs to"),
        (["--context", "1k", "--method", "yarn", "--evaluations", "50"], "--evaluations belongs to"),
        (["--context", "1k", "--evaluations", "50", "--search-minutes", "5"], "how long to search"),
        (["--context", "1k", "--method", "yarn", "--search-documents", "5"], "--search-documents belongs to"),
        (["--context", "1k", "--method", "yarn", "--search-text-weight", "0"], "--search-text-weight belongs to"),
        (["--context", "1k", "--search-documents", "5"], "nothing is searched here"),
        (
            ["--context", "1k", "--method", "longrope2", "--factors", "x", "--search-text-weight", "0"],
            "nothing is sear",
        ),
        (["--context", "1k", "--method", "longrope2", "--evaluations", "3"], "too few for a search"),
        (["--context", "1k", "--method", "longrope2", "--evaluations", "50", "--factors", "x"], "searches factors"),
        (["--context", "1k", "--evaluations", "50", "--for", "llama.cpp"], "would not read what longrope2 writes"),
        (["--context", "1k", "--among", "yarn,longrope2"], "cannot be measured beside others"),
        (["--context", "1k", "--method", "yarn", "--quick", "--no-report"], "--quick is for measuring"),
        (["--context", "1k", "--copy", "--race"], "--copy is for the weights"),
        (["--context", "1k", "--method", "linear", "--factor", "4"], "--factor belongs to"),
        (["--context", "1k", "--attention-factor", "1.2"], "--attention-factor belongs to"),
        (["--context", "1k", "--method", "yarn", "--critical-pair", "7"], "--critical-pair belongs to"),
        (["--context", "1k", "--method", "ntk-critical", "--critical-pair", "99"], "a pair between 1 and 15"),
        (["--context", "1k", "--method", "abf", "--theta", "1e6", "--factor", "4"], "both set the base"),
        (["--context", "1k", "--method", "ntk", "--factor", "5", "--train", "demo-long"], "exclude each other"),
        (["--context", "1k", "--method", "longrope2", "--factors", "/no/such"], "Factors cannot be read"),
        (["--context", "1k", "--method", "yarn", "--for", "ollama"], "no program known here"),
        (["--context", "1k", "--method", "yarn", "--allow-loss", "lama.cpp"], "Did you mean llama.cpp"),
        (["--context", "1k", "--text", "/no/such/text"], "/no/such/text"),
        (["--context", "1k", "--no-report"], "chooses by measuring"),
        (["--context", "1k", "--dry-run", "--race"], "exclude each other"),
        (["--context", "1k", "--log", "x"], "belong to --race"),
        (["--context", "1k", "--method", "yarn", "--gpu", "RTX 4060"], "--gpu plans for another card"),
        (["--context", "1k", "--race", "--gpu", "RTX 4060"], "--gpu plans for another card"),
        (["--context", "1k", "--race", "--method", "yarn"], "leaves nothing to measure"),
        (["--context", "1k", "--seed", "-1"], "--seed"),
        (["--context", "1k", "--prompts", "0"], "less than one"),
        (["--resume"], "no unfinished extension"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_cannot_be_is_refused_with_a_sentence_and_nothing_is_written(
    run: Run, model: Path, tmp_path: Path, words: list[str], expected: str, as_json: bool
) -> None:
    code, out, err = run("extend", model, tmp_path / "out", *words, *(["--json"] if as_json else []))
    assert code == 2
    error = json.loads(out)["error"] if as_json else {"what": err, "cause": "", "next_step": ""}
    assert expected in " ".join((error["what"], error["cause"], error["next_step"]))
    if as_json:
        assert error["next_step"]
    assert "Traceback" not in out + err
    assert litter(tmp_path) == []


def test_with_json_lines_an_error_is_a_line_too(run: Run, model: Path) -> None:
    code, out, err = run("extend", model, "--context", "100", "--race", "--json-lines")
    assert code == 2
    assert err == ""
    assert out.count("\n") == 1
    assert json.loads(out)["error"]["code"] == "context.target"


def test_dynamic_is_refused_with_the_lines_that_use_it_in_transformers(run: Run, model: Path, tmp_path: Path) -> None:
    code, _, err = run("extend", model, tmp_path / "out", "--context", "1k", "--method", "dynamic")
    assert code == 2
    told = " ".join(err.split())
    start = told.index('"rope_parameters"')
    lines = told[start : told.index("}", start) + 1]
    assert json.loads(f"{{{lines}}}")["rope_parameters"] == {
        "rope_type": "dynamic",
        "rope_theta": 10000.0,
        "factor": 4.0,
    }
    assert "leave max_position_embeddings at 256" in told
    assert "most readers" in told


def test_the_command_that_a_spec_without_factors_names_is_one_that_runs() -> None:
    from engine.errors import EngineError
    from engine.jobs.spec import JobSpec
    from engine.jobs.spec_context import ContextSection
    from scaler_tui.cli import build_parser
    from scaler_tui.commands.extend import check_together

    with pytest.raises(EngineError) as caught:
        JobSpec(context=ContextSection(length=1024, method="longrope2"))
    words = shlex.split(caught.value.next_step.partition("scaler-wizard ")[2].partition(";")[0])
    assert words[:4] == ["extend", "demo", "--context", "1024"]
    check_together(build_parser(words).parse_args(words))


def test_settings_of_one_method_reach_its_plan(run: Run, model: Path) -> None:
    def planned(*words: str) -> Any:
        code, out, _ = run("extend", model, "--context", "4x", "--dry-run", "--json", *words)
        assert code == 0
        return {one["id"]: one["factors"] for one in json.loads(out)["methods"]}[words[1]]

    assert planned("--method", "yarn", "--attention-factor", "1.3")["attention_factor"] == 1.3
    usual = planned("--method", "ntk-critical")
    assert planned("--method", "ntk-critical", "--critical-pair", "9")["divisors"][9] == pytest.approx(4.0)
    assert usual["divisors"][9] > 4.01
    assert planned("--method", "ntk", "--factor", "6")["divisors"][-1] == pytest.approx(6.0)


def test_time_for_a_search_is_told_with_the_race_and_the_report_after_it(run: Run, model: Path) -> None:
    def seconds(*words: str) -> float:
        code, out, _ = run("extend", model, "--context", "4x", "--dry-run", "--json", *words)
        assert code == 0
        return float(json.loads(out)["measuring_seconds"])

    searched = seconds("--method", "longrope2", "--search-minutes", "5")
    assert searched > 300 + 10
    assert seconds("--search-minutes", "5") > searched > seconds("--method", "yarn")
    few = seconds("--method", "longrope2", "--evaluations", "50", "--search-documents", "2")
    assert seconds("--method", "longrope2", "--evaluations", "50", "--search-documents", "8") > few


def test_a_folder_that_cannot_be_made_is_refused(run: Run, model: Path, tmp_path: Path) -> None:
    code, _, err = run("extend", model, "/proc/no/such/out", "--context", "1k", "--method", "yarn", "--no-report")
    assert code == 2
    assert "Cannot write to /proc" in err
    assert "Next:" in err
    assert litter(tmp_path) == []


def test_factors_of_another_model_are_refused(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "factors.csv").write_text("1\n2\n3\n")
    words = ("--context", "1k", "--method", "longrope2", "--factors", tmp_path / "factors.csv")
    code, _, err = run("extend", model, tmp_path / "out", *words)
    assert code == 2
    assert "3 values" in err
    assert "16, one per rotated pair" in err


@pytest.mark.parametrize("where", ["model/out", "taken"])
def test_nothing_is_overwritten_and_the_source_stays_as_it_is(
    run: Run, model: Path, tmp_path: Path, where: str
) -> None:
    (tmp_path / "taken").mkdir()
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    code, _, err = run("extend", model, tmp_path / where, "--context", "1k", "--method", "yarn")
    assert code == 2
    assert "Next:" in err
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert list((tmp_path / "taken").iterdir()) == []


def test_models_without_rotary_positions_are_refused_with_the_alternative(
    run: Run, model: Path, tmp_path: Path
) -> None:
    layouts = {
        "gpt2": ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": 256}, "trained table"),
        "falcon": ({"model_type": "falcon", "architectures": ["FalconForCausalLM"], "alibi": True}, "ALiBi"),
    }
    for changes, expected in layouts.values():
        with_config(model, **changes)
        code, _, err = run("extend", model, tmp_path / "out", "--context", "1k")
        assert code == 2
        assert "no rotary positions" in err
        assert expected in err
        assert "Take a model with rotary positions" in err
    assert litter(tmp_path) == []


def test_without_a_tokenizer_it_says_what_is_possible_all_the_same(run: Run, model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").unlink()
    code, _, err = run("extend", model, tmp_path / "out", "--context", "1k")
    assert code == 2
    assert "has no tokenizer" in err
    assert "--no-report" in err
    code, _, err = run("eval", model)
    assert code == 2
    assert "has no tokenizer" in err


def test_a_context_that_does_not_fit_is_refused_with_one_that_does(run: Run, model: Path, tmp_path: Path) -> None:
    from engine.advise.devices import single_device
    from engine.hardware.detect import detect

    cache_bytes = 2 * 6 * 32 * 2 * 16384  # of a layer: keys and values of six heads, two bytes each
    with_config(model, num_hidden_layers=4 * single_device(detect()).free_bytes // cache_bytes, num_key_value_heads=6)
    code, _, err = run("extend", model, tmp_path / "out", "--context", "16k", "--method", "yarn")
    assert code == 4
    assert "do not fit this machine" in err
    assert "--context " in err
    assert "--no-report" in err
    assert litter(tmp_path) == []


@pytest.mark.parametrize("broken", ["missing", "file", "empty", "no config", "not JSON", "damaged weights"])
@pytest.mark.parametrize("command", ["extend", "eval"])
def test_what_is_no_model_is_refused(run: Run, model: Path, tmp_path: Path, broken: str, command: str) -> None:
    if broken == "missing":
        shutil.rmtree(model)
    elif broken == "file":
        shutil.rmtree(model)
        model.write_text("")
    elif broken == "empty":
        shutil.rmtree(model)
        model.mkdir()
    elif broken == "no config":
        (model / "config.json").unlink()
    elif broken == "not JSON":
        (model / "config.json").write_text("{")
    else:
        (model / "model.safetensors").write_bytes(b"123")
    words = [tmp_path / "out", "--context", "1k"] if command == "extend" else []
    code, _, err = run(command, model, *words)
    assert code == 2
    assert "Next:" in err
    assert litter(tmp_path) == []


def test_an_unfinished_attempt_is_pointed_out(run: Run, model: Path, tmp_path: Path) -> None:
    staging_folder(tmp_path / "out").mkdir()
    code, _, err = run("extend", model, tmp_path / "out", "--context", "1k", "--method", "yarn")
    assert code == 2
    assert "--resume" in err


@pytest.mark.parametrize(
    ("words", "differs"),
    [
        (["--context", "2x"], "--context"),
        (["--method", "linear"], "--method"),
        (["--attention-factor", "1.2"], "--attention-factor"),
        (["--quick"], "--quick"),
        (["--dtype", "bfloat16"], "--dtype"),
        (["--copy"], "--copy"),
        (["--for", "vllm"], "--for"),
        (["--search-text-weight", "0"], "--search-text-weight"),
    ],
)
def test_a_resume_refuses_flags_that_ask_for_something_else(
    run: Run, model: Path, tmp_path: Path, words: list[str], differs: str
) -> None:
    interrupted(model, tmp_path / "out")
    code, _, err = run("extend", model, tmp_path / "out", "--resume", *words)
    assert code == 2
    assert f"{differs} differs" in err


def test_a_resume_takes_the_same_flags_again(model: Path, tmp_path: Path) -> None:
    from scaler_tui.cli import build_parser
    from scaler_tui.commands.extend_again import check_same

    interrupted(model, tmp_path / "out")
    words = ["--context", "4x", "--method", "yarn", "--no-report", "--seed", "17", "--allow-loss", "vllm"]
    whole = ["extend", str(model), str(tmp_path / "out"), "--resume", *words]
    check_same(build_parser(whole).parse_args(whole))


def test_a_resumed_search_may_be_told_its_documents_again(model: Path, tmp_path: Path) -> None:
    from scaler_tui.cli import build_parser
    from scaler_tui.commands.extend import check_together

    interrupted(model, tmp_path / "out", method="auto", evaluations=50, search_documents=5, search_text_weight=0.0)
    words = ["extend", str(model), str(tmp_path / "out"), "--resume"]
    words += ["--search-documents", "5", "--search-text-weight", "0"]
    check_together(build_parser(words).parse_args(words))


def test_a_loss_found_after_measuring_keeps_what_was_measured(run: Run, model: Path, tmp_path: Path) -> None:
    import msgspec

    from engine.context.method import Options
    from engine.context.planner import plan_context
    from engine.extension.extend import Decision, new_order
    from engine.extension.staging import Staging

    out = tmp_path / "out"
    order = new_order(model, "model", target=1024, method="longrope2", options=Options(), evaluations=12)
    options = Options(long_divisors=tuple(1 + 3 * pair / 15 for pair in range(16)))
    plan = plan_context(json.loads((model / "config.json").read_text()), 1024, "longrope2", options)
    with Staging.create(out, order) as staging:
        (staging.folder / "decision.json").write_bytes(msgspec.json.encode(Decision(plan=plan)))
    code, _, err = run("extend", model, out, "--resume")
    assert code == 2
    assert "--allow-loss llama.cpp: what was measured is kept and taken with --resume" in err
    assert (staging_folder(out) / "decision.json").is_file()


def interrupted(model: Path, out: Path, **more: Any) -> None:
    """What an attempt leaves behind that was ended before its folder was there."""
    from engine.context.method import Options
    from engine.extension.extend import new_order
    from engine.extension.staging import Staging

    fields = {"target": 1024, "method": "yarn", "options": Options(), "report": False, **more}
    order = new_order(model, "model", **fields)
    with Staging.create(out, order) as staging:
        (staging.folder / "race.jsonl").touch()


# ── eval ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--tasks", "needel"], "Did you mean needle"),
        (["--lengths", "4k,long"], "not a length"),
        (["--lengths", "4"], "too few to measure"),
        (["--text", "/no/such/text"], "/no/such/text"),
        (["--suite", "prose=/no/such/text"], "--suite prose=/no/such/text has no file"),  # before the model is loaded
        (["--tasks", "/no/such/task.yaml"], "Name a benchmark's .yaml"),
        (["--prompts", "0"], "less than one"),
        (["--base", "/no/such/model"], "no folder"),
        (["--out", "taken"], "Nothing is overwritten"),
        (["--html", "taken"], "Nothing is overwritten"),
        (["--html", "/proc/nope/page.html"], "page.html cannot be written"),
        (["--out", "taken/report.json"], "report.json cannot be written"),
    ],
)
def test_what_eval_cannot_measure_is_refused(
    run: Run, model: Path, tmp_path: Path, words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    code, out, err = run("eval", model, *words)
    assert code == 2
    assert expected in err
    assert out == ""
    assert (tmp_path / "taken").read_text() == "mine"


def test_eval_refuses_lengths_that_cannot_be_read_here_before_it_loads_anything(run: Run, model: Path) -> None:
    code, out, err = run("eval", model, "--lengths", "4k,16000000")
    assert code == 4
    assert "16,000,000 tokens of model do not fit this machine" in err
    assert "--lengths" in err
    assert out == ""


def test_a_run_without_a_whole_model_says_how_to_get_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.jobs.spec import JobSpec
    from engine.jobs.store import create_run

    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "home"))
    run_dir = create_run(JobSpec())
    (run_dir / "output" / "adapter").mkdir(parents=True)
    code, _, err = run("eval", run_dir.name)
    assert code == 2
    assert "keeps an adapter only" in err
    assert f"merge {run_dir.name}" in err


def test_found_factors_are_raced_beside_the_methods_that_need_no_search(model: Path) -> None:
    from engine.context.method import Options
    from engine.extension.extend import contenders, new_order

    more = {"target": 1024, "method": "auto", "options": Options()}
    assert contenders(new_order(model, "model", evaluations=50, among=("yarn",), **more)) == ("yarn", "longrope2")
    everything = contenders(new_order(model, "model", evaluations=50, **more))
    assert set(everything) == {*METHODS} - {"longrope"}


# ── what was found ────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_search_without_a_log_is_kept_where_the_same_order_finds_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.context.method import Options
    from engine.extension.extend import new_order
    from scaler_tui.commands.extend_race import search_log

    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "home"))

    def log(**more: Any) -> Path:
        fields = {"target": 1024, "method": "longrope2", "options": Options(), "search_minutes": 60.0, **more}
        return search_log(new_order(model, "model", **fields))

    assert log().parent == tmp_path / "home" / "state" / "races"
    assert log() == log(consumers=("vllm",), check=False)
    other: list[dict[str, Any]] = [{"seed": 5}, {"target": 512}, {"text": "demo"}, {"search_minutes": 5.0}]
    other += [{"dtype": "bfloat16"}, {"search_documents": 5}, {"search_text_weight": 0.0}]
    others = [log(**more) for more in other]
    assert len({log(), *others}) == 1 + len(others)


@pytest.mark.slow
def test_a_search_says_how_its_factors_are_used_and_shows_both_objectives(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALER_WIZARD_HOME", str(tmp_path / "home"))
    search = ("extend", model, "--context", "2x", "--race", "--method", "longrope2", "--evaluations", "12")
    search += ("--search-documents", "2", "--search-text-weight", "0.5")
    code, out, _ = run(*search)
    assert code == 0
    assert "NATS PER NEEDLE TOKEN" in out
    words = shlex.split(out.partition("Use it: ")[2])
    kept = Path(words[words.index("--factors") + 1])
    settings, *trials = map(json.loads, kept.read_text().splitlines())
    assert len(trials) == 12
    assert (settings["documents"], settings["weight"]) == (2, 0.5)
    monkeypatch.chdir(tmp_path)
    assert run(*words[1:], "--dry-run")[0] == 0
    again = run(*search, "--json")
    assert json.loads(again[1])["log"] == str(kept)


def test_a_searchs_table_has_every_known_method_on_both_objectives() -> None:
    from engine.jobs.race_lines import SearchDone
    from scaler_tui.context_text import search_origin, search_table
    from tests.support.context_runs import SEARCH, recorded

    done = recorded(SEARCH)[-1]
    assert isinstance(done, SearchDone)
    _, rows, _ = search_table(done)
    assert [row[0].split()[-1] for row in rows] == [
        "llama3", "ntk-critical", "by-parts", "yarn", "ntk", "abf", "linear"
    ]  # fmt: skip
    assert rows[0] == ["* llama3", "0.3590", "0.0015", "4.18"]
    assert "0.25 x ln(perplexity). 40 evaluations" in search_origin(done)
    import msgspec

    _, rows, _ = search_table(msgspec.structs.replace(done, origin="mutation", best=0.1, needle_nll=None))
    assert [row[:3] for row in rows[:2]] == [["* found", "0.1000", "."], ["  llama3", "0.3590", "0.0015"]]


def test_needles_as_json_are_those_of_the_verdict_and_other_tasks_have_their_names() -> None:
    import msgspec

    from engine.jobs.length_report import NeedleCell
    from scaler_tui.context_text import report_json
    from tests.support.context_runs import AFTER

    cells = [
        NeedleCell(task=task, length=256, depth=0.5, prompts=2, accuracy=accuracy, nll=0.0)
        for task, accuracy in (("needle", 1.0), ("key-value", 0.0))
    ]
    both = report_json(msgspec.structs.replace(AFTER, needles=tuple(cells)))
    assert both is not None
    assert both["needle"] == {"256": {"0.5": 1.0}}
    assert both["key-value"] == {"256": {"0.5": 0.0}}
    other = report_json(msgspec.structs.replace(AFTER, needles=tuple(cells[1:])))
    assert other is not None
    assert other["needle"] == other["key-value"] == {"256": {"0.5": 0.0}}


@pytest.mark.slow
def test_a_log_that_cannot_be_opened_is_named_with_advice_that_can_be_followed(
    run: Run, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    words = ("--context", "2x", "--race", "--among", "yarn", "--quick", "--log", tmp_path / "folder")
    code, _, err = run("extend", model, *words)
    assert code == 2
    assert "cannot be opened as a race's log" in err
    assert "--resume" not in err


# ── borders ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_plans_need_neither_torch_nor_textual(model: Path) -> None:
    script = (
        "import sys, json\nfrom scaler_tui.cli import main\n"
        f"code = main(['extend', {str(model)!r}, '--context', '1k', '--dry-run'])\n"
        "sys.stderr.write('\\n' + json.dumps([code, sorted({m.split('.')[0] for m in sys.modules})]))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment())
    code, names = json.loads(result.stderr.splitlines()[-1])
    assert code == 0, result.stderr
    assert not set(names) & {"torch", "transformers", "peft", "textual", "pydantic", "rich", "numpy"}


def test_help_names_every_method_and_exit_code() -> None:
    text = " ".join(cli("extend", "--help").out.split())
    for method in METHODS.values():
        assert f"{method.id} (" in text
    assert "exit codes: 0 done" in text
    assert "exit codes: 0 done" in cli("eval", "--help").out


def test_a_folder_called_like_the_embedded_model_is_named_as_a_folder(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from engine.context.certificate import Certificate
    from engine.context.method import Options
    from engine.context.planner import plan_context
    from scaler_tui.commands.extend import print_result

    plan = plan_context(json.loads((model / "config.json").read_text()), 1024, "yarn", Options())
    print_result(Certificate(source="demo", plan=plan), Path("demo"))
    assert "Written      ./demo in" in capsys.readouterr().out
