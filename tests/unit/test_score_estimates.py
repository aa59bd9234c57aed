"""The score tool: nothing is dropped, signs are right, and words are read by meaning."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.estimate.stacks import HF
from engine.estimate.workload import Attention, Loss, Method, OptimizerKind, Packing4Bit
from engine.units import GIB
from tests.score.methods import NotExpressible
from tests.score.models import UnknownModel, architecture_of, known_shapes
from tests.score.report import summary_of
from tests.score.results import Scored, Skipped, predict, score
from tests.score.rows import Measured, Row, card_bytes, measured_of, read_rows
from tests.score.stack_of import MODERN, MODERN_EAGER, OTHER, class_of, stack_of
from tests.score.workloads import mapped
from tests.score_estimates import main

SAMPLE = Path(__file__).parents[1] / "data" / "score_rows.csv"
ROWS = {row.id: row for row in read_rows(SAMPLE)}


def scored_and_skipped(*rows: Row) -> tuple[tuple[Scored, ...], tuple[Skipped, ...]]:
    return score(rows or ROWS.values())


def only(row: Row) -> Scored:
    scored, skipped = score([row])
    assert not skipped
    return scored[0]


def test_every_row_is_scored_or_listed_with_a_reason() -> None:
    scored, skipped = scored_and_skipped()
    assert sorted([one.row.id for one in scored] + [one.row.id for one in skipped]) == sorted(ROWS)
    assert all(one.reason for one in skipped)
    assert len(scored) > 20


def test_an_unknown_model_is_listed_with_its_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = list(csv.DictReader(SAMPLE.open(encoding="utf-8")))
    lines[0]["model"] = "Nobodys-Model-9B"
    file = tmp_path / "rows.csv"
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, lines[0].keys())
        writer.writeheader()
        writer.writerows(lines)
    assert main([str(file)]) == 0
    printed = capsys.readouterr().out
    assert f"{lines[0]['id']}  " in printed
    assert "Nobodys-Model-9B: shape not known" in printed


def test_a_promise_of_too_little_has_a_negative_error() -> None:
    one = only(ROWS["m004"])
    assert one.measured.allocated is not None
    assert one.measured.process is not None
    doubled = Measured(one.measured.allocated * 2, None, one.measured.process * 2)
    short = replace(one, measured=doubled)
    assert short.errors[0] is not None
    assert short.errors[0] == pytest.approx(one.predicted.allocated / doubled.allocated - 1)
    assert short.errors[0] < -0.4
    assert short.errors[1] is None
    summary = summary_of("x", [one, short], [])
    assert summary.errors[0] is not None
    assert summary.errors[0].worst_signed == short.errors[0]
    assert summary.errors[0].mean_absolute == pytest.approx((abs(one.errors[0] or 0) + abs(short.errors[0])) / 2)


def test_runs_that_ended_for_want_of_memory_count_in_the_verdicts() -> None:
    one = only(ROWS["m143"])
    assert one.ran is False
    assert one.judged_right is (one.verdict == "no")
    fitting = replace(one, verdict="fits")
    assert fitting.judged_right is False
    assert summary_of("x", [one, fitting], []).verdicts == 2
    assert summary_of("x", [fitting], []).verdicts_right == 0


def test_a_budget_is_turned_into_the_longest_sequence_that_fits() -> None:
    small, large = only(ROWS["m457"]), only(replace(ROWS["m457"], memory_bytes=40 * GIB))
    assert small.longest is not None
    assert large.longest is not None
    assert 1000 < small.longest < large.longest
    assert small.length_error == pytest.approx(small.longest / 5789 - 1)
    assert small.errors == (None, None, None)


def test_a_budget_in_which_nothing_fitted_is_not_a_sequence() -> None:
    one = only(ROWS["m454"])
    assert one.ran is False
    assert one.length_error is None


def test_sums_over_cards_are_divided() -> None:
    row = ROWS["m260"]
    assert measured_of(row).process == pytest.approx(row.memory_bytes / 2)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("metric", "framework", "kind"),
    [
        ("peak active", "torchtune", "allocated"),
        ("max allocated (gb = 1e9)", "litgpt", "allocated"),
        ("peak reserved per gpu", "x", "reserved"),
        ("gpu memory (method not stated)", "x", "process"),
        ("vram, rounded to gb", "llama-factory", "process"),
        ("gpu memory (gib as printed)", "ms-swift 1.x/2.x sft", "reserved"),
    ],
)
def test_what_was_read_is_told_from_the_words(metric: str, framework: str, kind: str) -> None:
    row = replace(ROWS["m196"], metric=metric, framework=framework)
    found = measured_of(row)
    assert [name for name in ("allocated", "reserved", "process") if getattr(found, name) is not None] == [kind]


def test_methods_are_read_from_words() -> None:
    full = mapped(ROWS["m108"]).work
    assert (full.method, full.packing, full.loss, full.checkpointing) == (
        Method.FULL, Packing4Bit.NONE, Loss.FULL, False,
    )  # fmt: skip
    gptq = mapped(ROWS["m209"]).work
    assert (gptq.packing, gptq.rank, len(gptq.targets)) == (Packing4Bit.GPTQ, 64, 7)
    assert mapped(ROWS["m202"]).work.train_embeddings
    assert mapped(ROWS["m131"]).work.packing is Packing4Bit.NF4_DOUBLE
    assert mapped(ROWS["m003"]).work.packing is Packing4Bit.NF4
    offloaded = mapped(ROWS["m449"]).work
    assert (offloaded.offload_activations, offloaded.loss, offloaded.optimizer) == (
        True, Loss.FUSED, OptimizerKind.ADAMW_8BIT,
    )  # fmt: skip
    assert mapped(ROWS["m029"]).work.attention is Attention.EAGER
    assert mapped(ROWS["m397"]).work.shards == 2
    assert mapped(ROWS["m408"]).work.shards == 1


@pytest.mark.parametrize(
    ("method", "reason"),
    [("ia3", "no formula"), ("prompt tuning", "no formula"), ("oft", "no formula"), ("vera", "no formula")],
)
def test_methods_without_a_formula_are_refused(method: str, reason: str) -> None:
    with pytest.raises(NotExpressible, match=reason):
        mapped(replace(ROWS["m004"], method=method))


def test_expansion_grows_the_model() -> None:
    plain = mapped(ROWS["m308"]).work
    grown = mapped(replace(ROWS["m308"], method="llamapro", notes="8 new blocks")).work
    assert grown.method is Method.NEW_BLOCKS
    assert grown.architecture.layers == plain.architecture.layers + 8
    assert grown.trained_layers == 8
    assert grown.architecture.parameters > plain.architecture.parameters


def test_rows_fall_into_the_class_of_their_stack() -> None:
    assert class_of(ROWS["m003"], stack_of(ROWS["m003"])) == MODERN
    assert class_of(ROWS["m029"], stack_of(ROWS["m029"])) == MODERN_EAGER
    assert class_of(ROWS["m196"], stack_of(ROWS["m196"])) == OTHER
    old = replace(ROWS["m003"], stack="torch 2.1 / transformers 4.36.2 / peft 0.7")
    assert class_of(old, stack_of(old)) == OTHER
    assert stack_of(replace(ROWS["m003"], stack="transformers 4.46.1", gpu="A100 80GB")) == HF


def test_cards_are_found_in_their_words() -> None:
    assert card_bytes(ROWS["m003"]) == 14_912 * (1 << 20)
    assert card_bytes(ROWS["m397"]) == card_bytes(replace(ROWS["m397"], gpu="RTX 3090"))
    assert card_bytes(ROWS["m196"]) == pytest.approx(80 * GIB, rel=0.02)
    assert card_bytes(replace(ROWS["m196"], gpu="not visible in the stored text")) is None


def test_shapes_have_their_published_sizes() -> None:
    for architecture, published_b in known_shapes():
        assert architecture.parameters / 1e9 == pytest.approx(published_b, rel=0.015), architecture.name


@pytest.mark.parametrize(
    ("name", "parameters_b"),
    [
        ("Llama 3.1 405B", 405.9), ("llama2-7b-chat", 6.74), ("Code Llama 34B", 33.7), ("Qwen-1_8B-Chat", 1.84),
        ("qwen1half-7b-chat", 7.72), ("Mixtral-8x7B-Instruct-v0.1", 46.7), ("RedPajama-INCITE-Base-3B-v1",
        2.78), ("meta-llama/Meta-Llama-3-70B-Instruct", 70.6), ("falcon-7b-instruct", 6.92), ("yi-6b-200k", 6.06),
    ],
)  # fmt: skip
def test_names_are_read_in_their_many_spellings(name: str, parameters_b: float) -> None:
    assert architecture_of(name).parameters / 1e9 == pytest.approx(parameters_b, rel=0.01)


def test_a_name_without_its_size_is_completed_by_the_stated_parameters() -> None:
    assert architecture_of("danube2", 1.83).layers == 24
    with pytest.raises(UnknownModel):
        architecture_of("danube2")


def test_a_file_of_another_form_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.csv"
    file.write_text("a,b\n1,2\n", encoding="utf-8")
    assert main([str(file)]) == 2
    assert "mem_metric" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.csv")]) == 2


def test_the_json_says_the_same_as_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(SAMPLE), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    scored, skipped = scored_and_skipped()
    assert len(report["rows"]) == len(scored)
    assert len(report["skipped"]) == len(skipped)
    assert {one["stack"] for one in report["constants"]} == {one.work.stack.id for one in scored}
    assert main([str(SAMPLE), "--rows"]) == 0
    text = capsys.readouterr().out
    assert "BY SOURCE" in text
    assert "CONSTANTS USED" in text
    assert all(one.row.id in text for one in (*scored, *skipped))


def test_rates_are_compared_in_the_rows_own_unit() -> None:
    row = ROWS["m408"]
    whole = only(replace(row, throughput_unit="tokens/s whole machine"))
    each = only(replace(row, throughput_unit="tokens/s/gpu"))
    assert whole.rate_error is not None
    assert each.rate_error is not None
    assert 1 + whole.rate_error == pytest.approx(row.gpus * (1 + each.rate_error))
    assert only(replace(row, throughput_unit="samples/s")).rate_error is None


def test_a_run_that_fits_never_shows_more_than_its_card_has() -> None:
    job = mapped(replace(ROWS["m308"], sequence=4096))
    free = predict(job)
    tight = predict(job, card=free.process - 1 * GIB)
    assert tight.process == pytest.approx(free.process - 1 * GIB)
    assert tight.allocated == free.allocated
    hopeless = predict(job, card=free.allocated / 2)
    assert hopeless.process == free.process


def test_rows_that_the_file_excludes_are_listed() -> None:
    _, skipped = scored_and_skipped(replace(ROWS["m004"], use="exclude", notes="below the floor"))
    assert "exclude" in skipped[0].reason
    assert "below the floor" in skipped[0].reason


def test_what_a_published_length_takes_is_held_against_the_budget() -> None:
    one = only(ROWS["m457"])
    assert one.budget_error == pytest.approx(one.predicted.process / (24 * GIB) - 1)
    assert only(ROWS["m454"]).budget_error is None
