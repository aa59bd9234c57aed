"""`expand` as a stranger meets it: plans first, exactly the promised JSON, nothing overwritten, nothing half done."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.expansion.certificate import read_certificate
from engine.resources import demo_model_dir
from engine.surgery.staging import staging_folder
from scaler_tui.cli import main
from scaler_tui.growth_progress import Lines, progress_words, remaining_seconds
from tests.support.cli import cli, command, environment, wait_for

RESULT = {
    "source", "output", "operators", "parameters_before", "parameters_after", "exact", "proof", "seconds",
    "peak_rss_bytes", "bytes_written",
}  # fmt: skip
PROOF = {
    "max_abs_logit_diff", "max_rel_logit_diff", "mean_kl", "top1_agreement", "generation_identical", "reloaded",
    "liveness",
}  # fmt: skip
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo model, to be sure that nobody touches it."""
    folder = tmp_path / "model"
    shutil.copytree(demo_model_dir(), folder)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`expand` in this process: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        code = main(["expand", *map(str, words)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def litter(folder: Path) -> list[str]:
    """Everything beside the model."""
    return sorted(path.name for path in folder.iterdir() if path.name != "model")


# ── plans ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_dry_run_shows_plans_side_by_side_and_writes_nothing(run: Run, model: Path) -> None:
    code, out, _ = run(model, "--to", "2x", "--dry-run")
    assert code == 0
    for expected in ("NOW", "WIDER", "DEEPER", "Parameters", "KV/token", "Disk", "Function", "exact", "--plan deeper"):
        assert expected in out
    assert "* " in out, "one plan is recommended"
    assert "Research:" in out
    assert "Nothing was written." in out
    assert litter(model.parent) == []


def test_plans_as_json_have_every_figure(run: Run, model: Path) -> None:
    code, out, _ = run(model, "--to", "7M", "--dry-run", "--json")
    document = json.loads(out)
    assert code == 0
    assert {"source", "output", "parameters_before", "target_parameters", "plan", "plans", "research"} <= set(document)
    assert document["target_parameters"] == 7_000_000
    assert len(document["plans"]) >= 3
    assert sum(plan["recommended"] for plan in document["plans"]) == 1
    for plan in document["plans"]:
        assert plan["exact"] is True
        assert plan["parameters"] == pytest.approx(7e6, rel=0.25)
        assert plan["kv_cache_bytes_per_token"] > 0
        assert plan["disk_bytes"] == 2 * plan["parameters"]
        assert plan["training_bytes"] > 0
        assert plan["training_hours"] > 0
        assert set(plan["operators"]) <= {"hidden", "ffn", "heads", "kv_heads", "layers", "experts"}


def test_a_card_can_be_planned_for(run: Run, model: Path) -> None:
    _, out, _ = run(model, "--to", "2x", "--dry-run", "--gpu", "RTX 4090")
    assert "VRAM" in out
    assert "SIM" in out


def test_a_known_model_can_be_planned_without_its_files(run: Run) -> None:
    code, out, _ = run("llama-3.2-3b", "--to", "7B", "--dry-run", "--json")
    plans = {plan["id"]: plan for plan in json.loads(out)["plans"]}
    assert code == 0
    assert plans["wider"]["kv_cache_bytes_per_token"] == 114_688, "widening costs no KV cache"
    assert plans["deeper"]["kv_cache_bytes_per_token"] > 200_000


def test_without_a_size_the_plans_are_shown_and_the_flags_that_choose(run: Run, model: Path, tmp_path: Path) -> None:
    code, out, err = run(model, tmp_path / "out")
    assert code == 2
    assert "--plan deeper" in out
    assert "nothing was written" in err
    assert "--to 2x" in err
    assert litter(tmp_path) == []


# ── growing ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_the_json_is_exactly_what_is_promised_and_the_function_is_kept(run: Run, model: Path, tmp_path: Path) -> None:
    before = digests(model)
    code, out, err = run(model, tmp_path / "out", "--hidden", 288, "--ffn", 576, "--layers", 9, "--json")
    document = json.loads(out)
    assert code == 0, err
    assert set(document) == RESULT
    assert set(document["proof"]) == PROOF
    assert document["exact"] is True
    assert document["operators"] == {"hidden": "pad", "ffn": "pad", "layers": "identity"}
    assert document["parameters_after"] > document["parameters_before"] == 3_615_936
    assert document["proof"]["max_rel_logit_diff"] < 1e-4
    assert document["proof"]["generation_identical"] is True
    assert document["proof"]["reloaded"] is True
    assert document["proof"]["liveness"]["alive"] is True
    assert document["seconds"] > 0
    assert document["bytes_written"] > 0
    assert digests(model) == before, "the source is only read"
    assert litter(tmp_path) == ["out"], "nothing is left beside the output"


@pytest.mark.slow
def test_an_operator_that_changes_the_function_reports_its_perplexity(run: Run, model: Path, tmp_path: Path) -> None:
    code, out, err = run(model, tmp_path / "out", "--layers", 12, "--operator", "solar", "--json")
    document = json.loads(out)
    assert code == 0, err
    assert document["exact"] is False
    assert set(document["proof"]) == PROOF | {"perplexity_before", "perplexity_after"}
    assert document["proof"]["perplexity_after"] > 0


@pytest.mark.slow
def test_people_get_a_verdict_and_the_meaning_of_every_figure(run: Run, model: Path, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text((demo_model_dir() / "README.md").read_text(encoding="utf-8") * 2, encoding="utf-8")
    code, out, err = run(model, tmp_path / "out", "--layers", 9, "--proof-text", text)
    assert code == 0, err
    for expected in ("The same function", "largest difference", "at most 1e-04", "KL divergence", "words.txt", "Undo"):
        assert expected in out
    for expected in ("Growing", "identity blocks", "Research:", "[writing]", "[proving]"):
        assert expected in err


def test_without_a_proof_it_says_so(run: Run, model: Path, tmp_path: Path) -> None:
    code, out, _ = run(model, tmp_path / "out", "--ffn", 768, "--no-proof")
    assert code == 0
    assert out.startswith("Not proven: 3.62M to ")
    certificate = read_certificate(tmp_path / "out")
    assert certificate is not None
    assert certificate.proof is None


def test_a_plan_chosen_by_name_is_the_one_that_is_carried_out(run: Run, model: Path, tmp_path: Path) -> None:
    _, out, _ = run(model, "--to", "2x", "--dry-run", "--json")
    planned = {plan["id"]: plan for plan in json.loads(out)["plans"]}["deeper"]
    code, out, _ = run(model, tmp_path / "out", "--to", "2x", "--plan", "deeper", "--no-proof", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["proof"] is None
    assert document["operators"] == planned["operators"] == {"layers": "identity"}
    assert document["parameters_after"] == planned["parameters"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == planned["layers"]


def test_equal_seeds_give_equal_bytes_and_another_seed_does_not(run: Run, model: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert run(model, tmp_path / name, "--ffn", 640, "--seed", seed, "--no-proof", "--json")[0] == 0
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_files_are_cut_at_the_size_that_was_asked_for(run: Run, model: Path, tmp_path: Path) -> None:
    assert run(model, tmp_path / "out", "--layers", 12, "--shard-size", "3MB", "--no-proof", "--json")[0] == 0
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()


def test_the_undo_gives_every_file_back(run: Run, model: Path, tmp_path: Path) -> None:
    assert run(model, tmp_path / "out", "--hidden", 256, "--ffn", 640, "--heads", 8, "--no-proof", "--json")[0] == 0
    code, out, _ = run(tmp_path / "out", tmp_path / "parent", "--undo", "--json")
    assert code == 0
    assert json.loads(out)["exact"] is True
    mine, theirs = digests(tmp_path / "parent"), digests(model)
    assert mine["model.safetensors"] == theirs["model.safetensors"]
    assert mine["config.json"] == theirs["config.json"]


@pytest.mark.parametrize("name", ["demo", "Demo"])
def test_the_printed_undo_of_a_folder_called_like_the_embedded_model_means_the_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("demo", name, "--ffn", 768, "--no-proof")
    assert code == 0, err
    assert f"Written  ./{name}: " in out
    words = shlex.split(out.partition("Undo ")[2])
    assert words == ["scaler-wizard", "expand", f"./{name}", "PARENT", "--undo"]
    code, out, err = run(*words[2:])
    assert code == 0, err
    assert digests(tmp_path / "PARENT")["model.safetensors"] == digests(demo_model_dir())["model.safetensors"]


# ── interruptions ─────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_going_on_finishes(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command("expand", str(model), str(out), "--to", "2x", "--plan", "deeper"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    log = staging_folder(out) / "proof.log"
    wait_for(log.exists, "the proof begins", seconds=120)
    process.send_signal(signal.SIGINT)
    told, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told == ""
    assert "Traceback" not in err
    assert f"scaler-wizard expand {model} {out} --resume" in err
    assert not out.exists()
    written = (staging_folder(out) / "model.safetensors").stat().st_mtime_ns
    code, told, err = run(model, out, "--resume", "--no-proof")
    assert code == 0, err
    assert (out / "model.safetensors").stat().st_mtime_ns == written, "finished files are not made again"
    assert litter(tmp_path) == ["out"]


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--to", "1M"], "not above the model's own"),
        (["--to", "big"], "is not a size"),
        (["--to", "900B"], "64 times"),
        (["--to", "2x", "--hidden", "288"], "Both a number of parameters"),
        (["--hidden", "100"], "would shrink"),
        (["--ffn", "512", "--layers", "8"], "Nothing would grow"),
        (["--layers", "0"], "is no size"),
        (["--layers", "many"], "invalid"),
        (["--layers", "9", "--operator", "magic"], "magic"),
        (["--layers", "9", "--operator", "tile"], "would do nothing"),
        (["--experts", "4", "--operator", "duplicate"], "no experts yet"),
        (["--to", "2x", "--plan", "taller"], "taller"),
        (["--to", "2x", "--seed", "-1"], "--seed"),
        (["--to", "2x", "--dtype", "int8"], "int8"),
        (["--to", "2x", "--shard-size", "some"], "is not a size"),
        (["--to", "2x", "--shard-size", "0"], "--shard-size 5GB"),
        (["--to", "2x", "--no-proof", "--proof-text", "x"], "exclude each other"),
        (["--to", "2x", "--proof-text", "/no/such/text"], "/no/such/text"),
        (["--dry-run", "--resume"], "exclude each other"),
        (["--resume"], "no unfinished expansion"),
        (["--undo"], "not made by"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_cannot_be_is_refused_with_a_sentence_and_nothing_is_written(
    run: Run, model: Path, tmp_path: Path, words: list[str], expected: str, as_json: bool
) -> None:
    code, out, err = run(model, tmp_path / "out", *words, *(["--json"] if as_json else []))
    assert code == 2
    error = json.loads(out)["error"] if as_json else {"what": err, "cause": "", "next_step": ""}
    assert expected in " ".join((error["what"], error["cause"], error["next_step"]))
    assert "Traceback" not in out + err
    assert litter(tmp_path) == []


@pytest.mark.parametrize("where", ["model/out", "taken"])
def test_nothing_is_overwritten_and_the_source_stays_as_it_is(
    run: Run, model: Path, tmp_path: Path, where: str
) -> None:
    (tmp_path / "taken").mkdir()
    before = digests(model)
    code, _, err = run(model, tmp_path / where, "--layers", 9, "--no-proof")
    assert code == 2
    assert "Next:" in err
    assert digests(model) == before
    assert list((tmp_path / "taken").iterdir()) == []


def test_out_is_needed_to_grow(run: Run, model: Path) -> None:
    code, _, err = run(model, "--layers", 9, "--no-proof")
    assert code == 2
    assert "OUT is missing" in err


def test_a_quantised_model_is_refused_with_the_way_out(run: Run, model: Path, tmp_path: Path) -> None:
    path = model / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    code, _, err = run(model, tmp_path / "out", "--ffn", 768, "--no-proof")
    assert code == 2
    assert "quantised" in err
    assert "16-bit" in err


def test_a_model_without_weights_here_is_refused(run: Run, tmp_path: Path) -> None:
    code, _, err = run("llama-3.2-3b", tmp_path / "out", "--to", "7B", "--no-proof")
    assert code == 2
    assert "are not here" in err


# ── borders ───────────────────────────────────────────────────────────────────────────────────────────────────────
def modules_of(*words: str) -> set[str]:
    """Top-level modules of a process that ran `expand`."""
    script = (
        "import sys, json\nfrom scaler_tui.cli import main\n"
        f"code = main({['expand', *words]!r})\n"
        "sys.stderr.write('\\n' + json.dumps([code, sorted({m.split('.')[0] for m in sys.modules})]))"
    )
    import sys

    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment()
    )
    code, names = json.loads(result.stderr.splitlines()[-1])
    assert code == 0, result.stderr
    return set(names)


def test_neither_plans_nor_surgery_import_torch_or_textual(model: Path, tmp_path: Path) -> None:
    heavy = {"torch", "transformers", "peft", "textual", "pydantic", "rich"}
    assert not modules_of(str(model), "--to", "2x", "--dry-run") & (heavy | {"numpy"})
    assert not modules_of(str(model), str(tmp_path / "out"), "--layers", "9", "--no-proof") & heavy


def test_help_names_every_operator_and_every_exit_code() -> None:
    from engine.expansion.operators import OPERATORS

    text = cli("expand", "--help").out
    for name in OPERATORS:
        assert name in text
    assert "exit codes: 0 done" in text


# ── progress ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_progress_says_how_much_how_far_and_how_long() -> None:
    gib = 1024**3
    assert progress_words("writing", 3 * gib, 12 * gib, 10) == "writing  3.00 of 12.0 GiB  25 %  30 s left"
    assert progress_words("proving", 3, 12, 0.1, counts_bytes=False) == "proving  3 of 12  25 %"
    assert progress_words("checking", 0, 0, 5) == "checking"
    assert remaining_seconds(0, 10, 5) is None
    assert remaining_seconds(10, 10, 5) is None
    assert remaining_seconds(5, 10, 0.2) is None, "too early to tell"


def test_lines_are_few_whatever_the_number_of_reports(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines() as view:
        for done in range(1001):
            view.show("writing", done, 1000)
    lines: list[Any] = capsys.readouterr().err.splitlines()
    assert lines[0] == "[writing]"
    assert len(lines) == 11
