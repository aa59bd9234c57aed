"""Rows of the GPU check: their columns, their words, appending, limits, and one real measurement on the CPU."""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engine.estimate.workload import Method, OptimizerKind
from engine.hardware import nvidia
from engine.rehearsal.orders import Edge, EdgeFound, Measurement, Order
from engine.units import GIB, MIB
from tests.gpu.grid import Configuration, configurations, edge_configurations
from tests.gpu.measure_grid import main, positive
from tests.gpu.predictions import Formula, formula, longest_sequence
from tests.gpu.rows import COLUMNS, PUBLISHED_COLUMNS, Result, append, line_of, next_number, slug
from tests.gpu.running import Clock, Outcome, read_answer, run
from tests.gpu.summary import as_json, as_text, edge_line
from tests.score.methods import method_of, optimizer_of, packing_of
from tests.score.rows import measured_of, read_rows
from tests.score.stack_of import stack_of

ROOT = Path(__file__).resolve().parents[2]
DATE = "2026-11-26"
SAID = Formula(3 * GIB, 3.3 * GIB, 3.8 * GIB, 3.2 * GIB, 4.5 * GIB, "loss")


def measured(**more: object) -> Measurement:
    plain = {
        "device": "cuda",
        "card": "NVIDIA H100 80GB HBM3",
        "total": 81_559 * MIB,
        "allocated": 4 * GIB,
        "reserved": int(4.4 * GIB),
        "process": 5 * GIB,
        "process_source": "nvml process",
        "versions": {"torch": "2.11.0", "transformers": "5.23.0", "peft": "0.21.2"},
    }
    return Measurement(**{**plain, **more})


def results() -> list[Result]:
    return [Result(one, SAID, measured()) for one in configurations()]


def test_forty_and_more_configurations_cover_every_method_and_no_two_are_alike() -> None:
    chosen = configurations()
    assert len(chosen) >= 40
    kinds = {msgspec.json.encode([one.rehearsal, one.paged, one.work.expandable_segments]) for one in chosen}
    assert len(kinds) == len(chosen)
    assert {one.method for one in chosen} == {"LoRA", "QLoRA", "full", "new blocks", "evaluation"}
    assert set(OptimizerKind) == {one.work.optimizer for one in chosen}
    assert all(formula(one).allocated > 0 for one in chosen)


def test_a_row_has_every_column_and_the_score_tool_reads_its_words_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    append(path, [line_of(result, number, DATE) for number, result in enumerate(results(), start=1)])
    for row, result in zip(read_rows(path), results(), strict=True):
        work = result.configuration.work
        assert measured_of(row).allocated == 4 * GIB
        assert measured_of(row).process == 5 * GIB
        assert (row.batch, row.sequence) == (work.batch, work.sequence)
        if result.configuration.method == "evaluation":
            continue
        stack = stack_of(row)
        assert method_of(row) is work.method
        assert optimizer_of(row, work.method, stack) is work.optimizer
        if work.method is Method.ADAPTER:
            assert packing_of(row, stack) is work.packing


def test_the_published_columns_come_first_and_unchanged() -> None:
    assert COLUMNS[: len(PUBLISHED_COLUMNS)] == PUBLISHED_COLUMNS
    assert PUBLISHED_COLUMNS[0] == "id"
    assert PUBLISHED_COLUMNS[-1] == "notes"
    with (ROOT / "tests/data/score_rows.csv").open(encoding="utf-8", newline="") as file:
        assert tuple(next(csv.reader(file))) == PUBLISHED_COLUMNS


def test_appending_keeps_what_is_there_and_numbers_go_on(tmp_path: Path) -> None:
    path = tmp_path / "measured" / "card.csv"
    assert next_number(path, DATE) == 1
    append(path, [line_of(results()[0], 1, DATE)])
    before = path.read_text(encoding="utf-8")
    assert next_number(path, DATE) == 2
    assert next_number(path, "2026-11-27") == 1
    append(path, [line_of(results()[1], 2, DATE)])
    after = path.read_text(encoding="utf-8")
    assert after.startswith(before)
    assert after.count("id,source") == 1


def test_a_file_of_other_columns_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "card.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="other columns"):
        append(path, [line_of(results()[0], 1, DATE)])
    assert path.read_text(encoding="utf-8") == "a,b\n1,2\n"


def test_errors_are_signed_and_a_failed_run_has_none() -> None:
    result = results()[0]
    assert result.errors["formula_alloc_error"] == pytest.approx(-0.25)
    assert result.errors["formula_process_error"] == pytest.approx(3.8 / 5 - 1)
    assert "dry_alloc_error" not in result.errors
    failed = Result(result.configuration, SAID, measured(out_of_memory="step", asked=MIB))
    assert failed.errors == {}
    line = line_of(failed, 1, DATE)
    assert line["mem_unit"] == "OOM"
    assert line["alloc_gib"] == ""


def test_what_was_not_measured_is_in_the_summary_with_its_reason() -> None:
    missing = Result(configurations()[0], SAID, None, problem="skipped: the time limit was reached before it began")
    text = as_text([missing, *results()[1:3]])
    assert "skipped: the time limit" in text
    facts = as_json([missing, *results()[1:3]], [], {"card": "x"})
    assert facts["measured"] == 2
    assert len(facts["problems"]) == 1
    assert facts["tiers"]["formula allocated"]["worst"] == pytest.approx(-0.25)


def test_the_formula_names_a_longer_sequence_for_a_larger_cap_and_none_for_a_tiny_one() -> None:
    for configuration in edge_configurations():
        lengths = [longest_sequence(configuration.work, cap) for cap in (0.5, 8.0, 12.0, 24.0)]
        assert lengths[0] == 0
        assert lengths == sorted(lengths)
        assert lengths[-1] > 1024
        assert longest_sequence(configuration.work, 12.0, slack="high") <= lengths[2]


def test_an_edge_says_by_how_much_the_formula_is_off() -> None:
    found = EdgeFound(cap_gib=8.0, longest=1000, shortest_failed=1064)
    assert "+10.0%" in edge_line("x", found, 1100, 900)
    none = EdgeFound(cap_gib=8.0, longest=0, shortest_failed=64)
    assert "right" in edge_line("x", none, 0, 0)
    assert "too hopeful" in edge_line("x", none, 640, 0)


def test_cards_get_plain_file_names() -> None:
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert slug("/../") == "unknown-card"


@pytest.mark.parametrize("text", ["0", "-3", "many", "1.5", "10000000"])
def test_limits_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        positive(text)


def test_without_a_card_the_check_says_so_and_ends_well(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if nvidia.probe(3.0).gpus:
        pytest.skip("there is a card here")
    assert main(["--out", str(tmp_path / "out")]) == 0
    assert "No NVIDIA card answers here" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_an_answer_that_is_none_becomes_a_sentence() -> None:
    assert read_answer(b"", b"Traceback\nKilled", -9) == Outcome(None, "ended with code -9: Killed")
    assert read_answer(b'{"error": {"what": "No.", "cause": "x"}}', b"", 2) == Outcome(None, "No. x")


def test_nothing_is_begun_when_the_time_is_up() -> None:
    order = Order(rehearsal=configurations()[0].rehearsal)
    assert run(order, Clock(5)).problem == "skipped: the time limit was reached before it began"


def tiny(**changes: object) -> Order:
    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 8192,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    first: Configuration = configurations()[0]
    rehearsal = msgspec.structs.replace(
        first.rehearsal, **{"config": config, "sequence": 128, "compute_bytes": 4, "autocast": False, **changes}
    )
    return Order(rehearsal=rehearsal, device="cpu", steps=3, seconds=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        ({"quantization": "nf4", "masked": True}, 2 * 16 * (2 * 256 * 2 + 2 * (256 + 128) + 3 * (256 + 512))),
        ({"method": "full", "compute_bytes": 2, "autocast": True}, 0),
    ],
)
def test_a_tiny_model_is_really_measured_on_the_cpu(changes: dict[str, object], trained: int) -> None:
    found = run(tiny(**changes), Clock(300)).measured
    assert found is not None
    assert found.device == "cpu"
    assert found.timed_steps == 3
    assert 0 < found.fastest_seconds <= found.step_seconds <= found.slowest_seconds
    assert found.tokens_per_second == pytest.approx(128 / found.step_seconds)
    base = 2 * 8192 * 256 + 2 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512 + 2 * 256) + 256
    assert found.parameters == base + trained
    assert found.trained == (trained or base)
    assert found.loss == pytest.approx(9.0, abs=0.5)  # ln 8192: random weights know nothing
    # Beyond the libraries: at least two copies of the 4,194,304 embedding values and the states of what learns.
    assert found.process - found.context > 2 * found.parameters
    assert found.process < 4 * GIB


@pytest.mark.slow
def test_an_order_for_an_impossible_device_is_refused_in_words() -> None:
    order = msgspec.structs.replace(tiny(), device="cuda", edges=(Edge(cap_gib=8.0, guess=512),))
    code = subprocess.run(
        [sys.executable, "-c", "import torch, sys; sys.exit(torch.cuda.is_available())"], check=False
    ).returncode
    if code:
        pytest.skip("torch can use a card here")
    assert run(order, Clock(300)).problem.startswith("No CUDA device can be used here.")
