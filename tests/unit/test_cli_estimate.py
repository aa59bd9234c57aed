"""`estimate`: one job, one answer in figures with their origin; whatever is absurd is refused with what is allowed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.estimate.estimate import Verdict
from scaler_tui.cli import main

Run = Callable[..., tuple[int, str, str]]
SHAPE = {
    "model_type": "mine",
    "architectures": ["MineForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 128,
}
RANGE = {"low", "likely", "high"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str, str]:
        code = main(["estimate", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def figures(run: Run) -> Callable[..., dict[str, Any]]:
    def call(*words: str) -> dict[str, Any]:
        code, out, err = run(*words, "--json")
        assert code == 0, out + err
        document: dict[str, Any] = json.loads(out)
        return document

    return call


def spec_file(place: Path, text: str = 'task = "qlora"\n', name: str = "spec.toml") -> str:
    (place / name).write_text(text)
    return name


@pytest.mark.parametrize("card", ["", "RTX 4090", "RTX 3060 12GB", "8G"])
def test_the_answer_of_a_spec_has_every_key_scripts_rely_on(card: str, place: Path, figures: Any) -> None:
    found = figures(spec_file(place), *(["--gpu", card] if card else []))
    assert set(found) >= {"memory", "ram", "disk", "hours", "cost_usd", "verdict", "limiting", "fixes", "origin"}
    for key in ("memory", "ram", "disk", "hours", "cost_usd"):
        assert set(found[key]) >= RANGE
        assert found[key]["low"] <= found[key]["likely"] <= found[key]["high"]
    assert sum(found["memory"]["breakdown"].values()) == found["memory"]["likely"]
    assert found["verdict"] in set(Verdict)
    assert found["origin"] == "formula"
    assert found["simulated"] is bool(card)
    assert set(found["sources"]) == set(found["memory"]["breakdown"])


def test_a_job_that_does_not_fit_is_an_answer_with_ways_out_and_not_a_failure(figures: Any) -> None:
    found = figures("llama-3.1-8b", "--approach", "lora", "--gpu", "RTX 4060")
    assert found["verdict"] == "no"
    assert "GiB are free on this card" in found["verdict_reason"]
    assert found["memory"]["high"] > found["free_bytes"]
    assert found["fixes"]
    for fix in found["fixes"]:
        assert fix["verdict"] != "no"
        assert set(fix["hours"]) == RANGE
        assert fix["price"]


def test_the_settings_of_a_way_out_make_the_spec_fit(place: Path, figures: Any) -> None:
    model = '[model]\nsource = "llama-3.2-3b"\n'
    large = f'task = "lora"\n{model}[data]\nmax_length = 4096\n[training]\nbatch_size = 8\n'
    found = figures(spec_file(place, large), "--gpu", "RTX 3060 12GB")
    assert found["verdict"] == "no"
    fix = next(fix for fix in found["fixes"] if fix["set"] and fix["verdict"] == "fits")
    tables: dict[str, list[str]] = {"": []}
    for key, value in {"model.source": "llama-3.2-3b", "task": "lora", "data.max_length": 4096,
                       "training.batch_size": 8, **fix["set"]}.items():  # fmt: skip
        table, _, name = key.rpartition(".")
        tables.setdefault(table, []).append(f"{name} = {json.dumps(value)}")
    text = "\n".join(tables.pop("")) + "".join(f"\n[{table}]\n" + "\n".join(lines) for table, lines in tables.items())
    again = figures(spec_file(place, text, "fixed.toml"), "--gpu", "RTX 3060 12GB")
    assert again["verdict"] == "fits"
    assert again["memory"]["likely"] == pytest.approx(fix["memory"]["likely"], rel=1e-3)


def test_questions_are_answered_the_other_way_round(figures: Any) -> None:
    words = ["llama-3.2-3b", "--approach", "qlora", "--gpu", "RTX 4090"]
    asked = ["sequence", "batch", "rank", "model"]
    found = figures(*words, *(word for name in asked for word in ("--largest", name)), "--finish-in", "12h")
    assert set(found["largest"]) == set(asked)
    for answer in found["largest"].values():
        assert answer["memory"]["high"] <= found["free_bytes"]
    longest = found["largest"]["sequence"]["value"]
    assert figures(*words, "--sequence", str(longest))["verdict"] == "fits"
    assert figures(*words, "--sequence", str(longest + 64))["verdict"] != "fits"
    card = found["cheapest_card"]
    assert card["count"] == 1
    assert card["hours"]["likely"] <= 12


def test_text_is_80_columns_with_a_bar_formula_and_source_per_part(place: Path, run: Run) -> None:
    code, out, _ = run(spec_file(place), "--gpu", "RTX 4090")
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines()), out
    assert "SIM: not this machine" in out
    assert "#" in out
    assert "weights" in out
    assert "[bitsandbytes" in out
    assert "Limit" in out


@pytest.mark.parametrize(
    ("text", "job"),
    [
        ('task = "mix"\n[[adapters]]\npath = "a"\n[[adapters]]\npath = "b"\n', "Mix of 2 adapters on demo"),
        ('task = "lora"\n[distillation]\nteacher = "self"\n', "Distillation on demo"),
        ('task = "lora"\n', "LoRA on demo"),
    ],
)
def test_the_text_says_first_what_kind_of_job_it_is(text: str, job: str, place: Path, run: Run) -> None:
    code, out, _ = run(spec_file(place, text), "--gpu", "RTX 4090")
    assert code == 0
    assert f"Job       {job}," in out.splitlines()[0]


def test_counted_rows_and_a_guess_from_the_size_are_told_apart(place: Path, run: Run) -> None:
    (place / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 50)
    text = '[model]\nsource = "llama-3.2-3b"\n[data]\ntrain = "rows.jsonl"\n'
    assert "guessed from its size" in run(spec_file(place, text))[2]
    assert "guessed" not in run(spec_file(place))[2]


def test_help_says_that_the_exit_code_does_not_tell_the_verdict(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "0 whatever the verdict is" in " ".join(out.split())


# (spec or model, flags, what the message must name)
BAD = [
    ("demo", "--gpu RTX9999", "RTX 5090"),
    ("demo", "--gpu Voodoo2", "Voodoo2"),
    ("demo", "--approach magic", "block-expansion"),
    ("demo", "--approach full-expansion --quantization nf4", "4-bit values have no usable gradient"),
    ("demo", "--approach lora --rank 0", "from 1 to 65,536"),
    ("demo", "--approach lora --sequence -5", "from 1 to 16,777,216"),
    ("demo", "--approach lora --sequence 1000000000000", "from 1 to 16,777,216"),
    ("demo", "--approach lora --batch 1e12", "from 1 to 4,096"),
    ("demo", "--sequence many", "--sequence 2048"),
    ("demo", "--quantization int3", "nf4"),
    ("demo", "--data-tokens 1000000000000", "from 1,000 to 500,000,000,000"),
    ("demo", "--data-tokens=-1", "from 1,000"),
    ("demo", "--largest fame", "sequence"),
    ("demo", "--approach full-expansion --largest rank", "no adapter"),
    ("demo", "--finish-in soon", "12h, 3d, 2w"),
    ("demo", "--finish-in 0h", "12h, 3d, 2w"),
    ("demo", "--dry-run --probe", "not allowed with"),
    ("demo", "--approach full-expansion --dry-run", "no dry run"),
    ("demo", "--approach lora --gpu 8G --probe", "measures this machine"),
    ("nowhere", "", "nowhere"),
    ("missing.toml", "", "missing.toml"),
    ("fine.toml", "--approach lora", "--approach goes with a model"),
    ("fine.toml", "--goal style", "--goal goes with a model"),
    ("fine.toml", "--rank 0", "adapter.rank: Expected `int` >= 1; allowed: from 1 to 1,024"),
    ("full.toml", "", "4-bit values have no usable gradient"),
    ("rank.toml", "", "line 2, key 'adapter.rank': Expected `int` >= 1; allowed: from 1 to 1,024"),
    ("length.toml", "", "key 'data.max_length': Expected `int` >= 8; allowed: from 8 to 16,777,216"),
    ("huge.toml", "", "key 'data.max_length': Expected `int` <= 16777216; allowed: from 8 to 16,777,216"),
    ("rows.toml", "", "key 'training.batch_size': Expected `int` <= 4096; allowed: from 1 to 4,096"),
    ("product.toml", "", "tokens per micro-batch is 67,108,864,000; it must be from 1 to 67,108,864"),
    ("optimizer.toml", "", "allowed: one of adamw, adamw_8bit, paged_adamw_8bit"),
    ("lacking", "", "num_hidden_layers"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "flags", "named"), BAD, ids=[f"{asked} {flags}" for asked, flags, _ in BAD])
def test_bad_input_is_told_with_what_is_allowed(asked: str, flags: str, named: str, place: Path, run: Run) -> None:
    spec_file(place, 'task = "lora"\n', "fine.toml")
    spec_file(place, 'task = "full"\n[quantization]\nkind = "nf4"\n', "full.toml")
    spec_file(place, "[adapter]\nrank = 0\n", "rank.toml")
    spec_file(place, "[data]\nmax_length = -2048\n", "length.toml")
    spec_file(place, "[data]\nmax_length = 1000000000000\n", "huge.toml")
    spec_file(place, "[training]\nbatch_size = 5000\n", "rows.toml")
    spec_file(place, "[data]\nmax_length = 16384000\n[training]\nbatch_size = 4096\n", "product.toml")
    spec_file(place, '[training]\noptimizer = "lion"\n', "optimizer.toml")
    (place / "lacking").mkdir()
    config = {key: value for key, value in SHAPE.items() if key != "num_hidden_layers"}
    (place / "lacking" / "config.json").write_text(json.dumps(config))
    code, out, err = run(asked, *flags.split())
    assert (code, out) == (2, "")
    assert named in " ".join(err.split())
    assert "Traceback" not in err
    code, out, _ = run(asked, *flags.split(), "--json")
    assert code == 2
    error = json.loads(out)["error"]
    assert named in " ".join(error.values())


def test_no_card_in_time_says_which_is_the_fastest(run: Run) -> None:
    code, out, err = run("llama-3.1-70b", "--approach", "full-expansion", "--gpu", "RTX 4090", "--finish-in", "1h")
    assert (code, out) == (4, "")
    assert "within 1h" in err


def test_other_numbers_of_cards_are_compared_in_eighty_columns_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["estimate", "llama-3.2-3b", "--approach", "qlora", "--gpu", "RTX 4090", "--cards"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "On several such cards" in text
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["cards"]
    assert [row["cards"] for row in rows] == [1, 2, 4, 8]
    assert rows[1]["strategy"] == "ddp"
    assert rows[1]["speedup"] > 1.5


def test_cards_cannot_be_compared_without_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "demo", "--gpu", "none", "--cards"]) == 2
    assert "--gpu" in capsys.readouterr().err
