"""Measuring by length on the demo model and on small random ones of other families: equalities first."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.evaluation import lengths
from engine.evaluation.__main__ import main
from engine.evaluation.calibration import calibrate
from engine.evaluation.haystack import HaystackOrder, build, even_depths
from engine.evaluation.haystack_frame import NOTES, Writer
from engine.evaluation.haystack_tasks import NEEDLE, TASKS
from engine.evaluation.head import SelectiveHead
from engine.evaluation.length_measure import LengthRequest, measure_lengths
from engine.evaluation.length_memory import needed_bytes, room_for
from engine.evaluation.length_text import Documents, load_text
from engine.evaluation.long_pass import Room, can_cache, depends_on_length, token_losses
from engine.evaluation.model import LoadedModel
from engine.evaluation.needles import Answered, answer
from engine.jobs.length_report import LengthReport
from engine.jobs.length_verdict import needle_accuracy, short_exceeds
from engine.resources import demo_model_dir

pytestmark = pytest.mark.slow
THETA = {"rope_theta": 10000.0}
ORIGINAL = {"original_max_position_embeddings": 256}
ROPES: dict[str, dict[str, Any]] = {
    "none": {"rope_type": "default", **THETA},
    "linear": {"rope_type": "linear", "factor": 4.0, **THETA},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, **THETA},
    "llama3": {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL, **THETA
    },
    "longrope": {
        "rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 16, "long_factor": [4.0] * 16, **ORIGINAL,
        **THETA,
    },
}  # fmt: skip
SMALL = {
    "vocab_size": 1216, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "gemma3_text": {"sliding_window": 48, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma2": {"sliding_window": 48, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
    "mistral": {"sliding_window": 64},
    "cohere": {"logit_scale": 0.25},
    "phi3": {
        "original_max_position_embeddings": 128,
        "rope_parameters": {
            "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, **THETA,
            "original_max_position_embeddings": 128,
        },
    },
}  # fmt: skip


@cache
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.load(demo_model_dir())


@cache
def demo(rope: str) -> LoadedModel:
    from transformers import AutoModelForCausalLM

    window = {} if rope in ("none", "dynamic") else {"max_position_embeddings": 1024}
    model = AutoModelForCausalLM.from_pretrained(
        demo_model_dir(), dtype=torch.float32, rope_parameters=ROPES[rope], **window
    ).eval()
    return LoadedModel(model, SelectiveHead(model), tokenizer(), "cpu", torch.float32)


@cache
def random_model(family: str) -> LoadedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family]})
    attention = "eager" if family == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()
    return LoadedModel(model, SelectiveHead(model), tokenizer(), "cpu", torch.float32)


@cache
def documents(length: int = 512) -> Documents:
    return load_text(tokenizer(), "demo", length, 2)


def whole_losses(model: LoadedModel, ids: Tensor) -> Tensor:
    """(B, T - 1) from one plain pass of transformers, in float32."""
    token = torch.zeros((1, 1), dtype=torch.long)
    with torch.no_grad():
        model.model(token, use_cache=False)  # dynamic frequencies back to where they start
        logits = model.model(ids, use_cache=False).logits.float()
    return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


# ── losses ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("rope", ["none", "dynamic", "longrope"])
def test_losses_in_chunks_equal_one_pass_over_the_whole_text(rope: str) -> None:
    model = demo(rope)
    ids = torch.tensor(documents(400).whole())
    expected = whole_losses(model, ids)
    with model.inference():
        found = token_losses(model, ids, 1, Room(tokens=2 * 96))
        assert torch.allclose(found, expected, atol=2e-4)
        few_logits = Room(logit_bytes=1216 * 10 * 2 * 150)
        assert torch.allclose(token_losses(model, ids, 300, few_logits), expected[:, 299:], atol=2e-4)
    assert abs(float(found.mean() - expected.mean())) < 1e-5


@pytest.mark.parametrize("family", list(FAMILIES))
def test_other_families_are_measured_in_chunks_as_in_one_pass(family: str) -> None:
    model = random_model(family)
    ids = torch.tensor(documents(300).whole())
    expected = whole_losses(model, ids)
    with model.inference():
        found = token_losses(model, ids, 1, Room(tokens=2 * 70))
    assert torch.allclose(found, expected, atol=1e-4)


def test_never_more_logits_at_a_time_than_there_is_room_for() -> None:
    model = demo("llama3")
    seen: list[int] = []
    head = model.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, _arguments, logits: seen.append(logits.numel() // 1216))
    try:
        with model.inference():
            token_losses(model, torch.tensor(documents(400).whole()), 1, Room(logit_bytes=1216 * 10 * 2 * 64))
        assert sum(seen) == 2 * 399
        assert max(seen) <= 2 * 64
    finally:
        hook.remove()


def test_a_sliding_window_as_long_as_the_text_is_a_single_pass() -> None:
    model = demo("llama3")
    texts = documents(400)
    single = whole_losses(model, torch.tensor(texts.whole()))
    slid = lengths.sliding(model, texts, texts.length, texts.length, Room())
    assert slid.tokens == single.numel()
    assert slid.mean == pytest.approx(float(single.mean()), abs=1e-5)


def test_a_sliding_window_counts_every_token_but_the_first_once() -> None:
    for length, window, stride in ((512, 128, 64), (500, 128, 48), (300, 300, 7), (77, 32, 32)):
        counted: list[int] = []
        for step in lengths.windows(length, window, stride):
            counted += range(step.end - step.counted, step.end)
            assert step.end >= window
        assert counted == list(range(1, length))


def test_a_shorter_window_sees_less_and_knows_less() -> None:
    model = demo("none")
    texts = documents(256)
    whole = lengths.sliding(model, texts, 256, 32, Room()).mean
    narrow = lengths.sliding(model, texts, 8, 4, Room()).mean
    assert narrow > whole + 0.1


def test_the_closing_tokens_are_the_same_at_every_length() -> None:
    model = demo("none")
    texts = documents(256)
    for length in (64, 128, 256):
        rows = torch.tensor(texts.ends(length))
        assert rows.shape[1] == length
        found = lengths.last_k(model, texts, length, 16, Room())
        assert len(found) == 2 * 16
        assert list(found) == pytest.approx(whole_losses(model, rows)[:, -16:].flatten().tolist(), abs=1e-4)


def test_losses_by_position_add_up_to_the_whole() -> None:
    model = demo("none")
    texts = documents(256)
    found = lengths.by_position(model, texts, Room())
    assert [entry.start for entry in found[1:]] == [entry.end for entry in found[:-1]]
    assert (found[0].start, found[-1].end) == (1, 256)
    total = sum(entry.nll * entry.tokens for entry in found) / sum(entry.tokens for entry in found)
    assert total == pytest.approx(float(whole_losses(model, torch.tensor(texts.whole())).mean()), abs=1e-5)


# ── needles ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def check_against_plain_passes(model: LoadedModel, task: str, length: int, room: Room) -> None:
    writer = Writer(tokenizer(), NOTES)
    stacks = [s for n in range(2) for s in build(writer, HaystackOrder(task, length, even_depths(2), 5, n))]
    for stack, answers in zip(stacks, answer(model, stacks, room), strict=True):
        for number, (question, found) in enumerate(zip(stack.questions, answers, strict=True)):
            ids = stack.prompt(number)
            places = [len(stack.shared) + index for index in question.scored]
            losses = whole_losses(model, torch.tensor([ids]))[0]
            assert found.nll == pytest.approx(float(losses[[place - 1 for place in places]].sum()), abs=2e-4)
            assert (found.depth, found.tokens) == (question.depth, len(places))


@pytest.mark.parametrize("rope", ["none", "dynamic", "longrope"])
def test_questions_continued_from_one_cache_equal_prompts_one_by_one(rope: str) -> None:
    check_against_plain_passes(demo(rope), NEEDLE, 420, Room())
    check_against_plain_passes(demo(rope), NEEDLE, 300, Room(tokens=100, cache_bytes=1))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_other_families_are_asked_as_one_by_one(family: str) -> None:
    check_against_plain_passes(random_model(family), NEEDLE, 200, Room(tokens=150))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_scored_as_one_by_one(task: str) -> None:
    check_against_plain_passes(demo("llama3"), task, 300, Room())


def test_an_answer_is_right_when_greedy_decoding_gives_it() -> None:
    model = demo("none")
    stacks = build(Writer(tokenizer(), NOTES), HaystackOrder(NEEDLE, 600, even_depths(5), 2))
    for stack, answers in zip(stacks, answer(model, stacks, Room()), strict=True):
        for number, question in enumerate(stack.questions):
            prompt = stack.prompt(number)
            start = len(stack.shared) + question.scored[0]
            with torch.no_grad():
                said = model.model.generate(
                    torch.tensor([prompt[:start]]), max_new_tokens=len(prompt) - start, do_sample=False, use_cache=True
                )[0].tolist()
            assert answers[number].correct == (tuple(said) == prompt)
    assert {entry.correct for row in answer(model, stacks, Room()) for entry in row} == {True, False}


def test_frequencies_that_follow_length_are_not_left_over_from_a_longer_text() -> None:
    model = demo("dynamic")
    assert depends_on_length(model)
    assert not depends_on_length(demo("llama3"))
    writer = Writer(tokenizer(), NOTES)
    short = build(writer, HaystackOrder(NEEDLE, 300, even_depths(3)))
    before = answer(model, short, Room())
    answer(model, build(writer, HaystackOrder(NEEDLE, 900, even_depths(3))), Room())
    assert answer(model, short, Room()) == before


def test_the_window_that_slides_and_switches_is_asked_without_a_cache() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("phi3", **{**SMALL, **FAMILIES["phi3"], "sliding_window": 40})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    both = LoadedModel(model, SelectiveHead(model), tokenizer(), "cpu", torch.float32)
    assert not can_cache(both, 200)
    check_against_plain_passes(both, NEEDLE, 200, Room())


def test_a_card_out_of_memory_gets_half_of_it_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = demo("none")
    writer = Writer(tokenizer(), NOTES)
    stacks = [s for n in range(4) for s in build(writer, HaystackOrder(NEEDLE, 200, even_depths(3), 0, n))]
    expected = answer(model, stacks, Room())
    real = SelectiveHead.logits_of

    def small_card(self: SelectiveHead, module: Any, wanted: Any) -> Tensor:
        if wanted.input_ids.numel() > 450:
            raise torch.OutOfMemoryError
        return real(self, module, wanted)

    monkeypatch.setattr(SelectiveHead, "logits_of", small_card)
    room = Room()
    found = answer(model, stacks, room)
    assert room.tokens < Room().tokens
    for row, other in zip(found, expected, strict=True):
        assert [entry.correct for entry in row] == [entry.correct for entry in other]
        assert [entry.nll for entry in row] == pytest.approx([entry.nll for entry in other], abs=1e-4)
    monkeypatch.setattr(SelectiveHead, "logits_of", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(EngineError) as refused:
        answer(model, stacks, Room())
    assert refused.value.code == "evaluation.memory"
    assert "--quantization" in refused.value.next_step


def test_the_demo_model_answers_needles_within_its_window_and_loses_the_far_ones_beyond() -> None:
    found = calibrate(demo("none"), 256, Room())
    assert found.style == NOTES
    assert found.accuracy >= 0.95
    writer = Writer(tokenizer(), NOTES)

    def asked(rope: str, length: int) -> list[Answered]:
        stacks = [s for n in range(4) for s in build(writer, HaystackOrder(NEEDLE, length, even_depths(5), 1, n))]
        return [entry for row in answer(demo(rope), stacks, Room()) for entry in row]

    def share(entries: list[Answered]) -> float:
        return sum(entry.correct for entry in entries) / len(entries)

    assert share(asked("none", 256)) >= 0.95
    assert share(asked("none", 1024)) < 0.5
    assert share(asked("llama3", 1024)) >= 0.9


def test_a_random_model_is_said_to_be_uninformative() -> None:
    request = LengthRequest(lengths=(128,), text="demo", documents=1, prompts=1, depths=2, sliding=False)
    report = measure_lengths(random_model("qwen2"), request)
    assert not report.informative
    assert any("needles say nothing" in note for note in report.notes)


def test_a_task_too_hard_within_the_window_is_named() -> None:
    request = LengthRequest(
        lengths=(200,),
        tasks=("key-value",),
        style=NOTES,
        prompts=1,
        depths=2,
        documents=1,
        perplexity=False,
        text="demo",
    )
    report = measure_lengths(demo("none"), request)
    assert report.informative
    assert not report.perplexity
    assert any(note.startswith("key-value: 0% within the original window") for note in report.notes)


# ── whole measurements ──────────────────────────────────────────────────────────────────────────────────────────────
def test_the_gate_fires_on_linear_and_not_on_dynamic() -> None:
    from engine.evaluation.short_text import regression, short_score

    texts = documents(256)
    before = short_score(demo("none"), texts, 256, Room())
    assert regression(before, short_score(demo("dynamic"), texts, 256, Room())).change == 0
    linear = regression(before, short_score(demo("linear"), texts, 256, Room()))
    assert linear.change > 0.8
    assert short_exceeds(linear, 0.05)


def test_what_does_not_fit_is_refused_with_the_switch_that_helps() -> None:
    model = demo("none")
    assert needed_bytes(model, 1 << 20) > needed_bytes(model, 1 << 10)
    with pytest.raises(EngineError) as refused:
        room_for(model, 1 << 20, free=1 << 30)
    assert (refused.value.code, int(refused.value.exit_code)) == ("evaluation.memory", 4)
    assert "--quantization nf4" in refused.value.next_step
    assert "--lengths up to" in refused.value.next_step


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (LengthRequest(lengths=(8,)), "evaluation.lengths"),
        (LengthRequest(lengths=(256,), tasks=("riddles",)), "evaluation.unknown_task"),
        (LengthRequest(lengths=(256,), style="shouting"), "evaluation.unknown_style"),
        (LengthRequest(lengths=(256,), prompts=0), "evaluation.number"),
        (LengthRequest(lengths=(50_000,), text="demo", documents=1), "evaluation.text_too_short"),
        (LengthRequest(lengths=(40,), text="demo", documents=1, style=NOTES), "evaluation.too_short"),
    ],
)
def test_what_cannot_be_measured_is_refused(request_: LengthRequest, code: str) -> None:
    with pytest.raises(EngineError) as refused:
        measure_lengths(demo("none"), request_)
    assert refused.value.code == code
    assert refused.value.next_step


def extended(folder: Path) -> Path:
    """The demo model under llama3's frequencies, as a folder of its own."""
    shutil.copytree(demo_model_dir(), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_parameters": ROPES["llama3"], "max_position_embeddings": 1024}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def command(folder: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "engine.evaluation", "--model", str(folder), "--base", str(demo_model_dir()),
        "--original", "256", "--lengths", "128,512", "--documents", "1", "--prompts", "4", "--depths", "2",
        "--threads", "1", *options,
    ]  # fmt: skip


def read_report(path: Path) -> LengthReport:
    found = msgspec.json.decode(path.read_bytes(), type=LengthReport)
    return msgspec.structs.replace(found, seconds=0.0)


def lines_of(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def test_a_killed_measurement_goes_on_and_gives_the_same_report(tmp_path: Path) -> None:
    folder, log = extended(tmp_path / "extended"), tmp_path / "cells.jsonl"
    threads = torch.get_num_threads()
    try:
        assert main([*command(folder)[3:], "--out", str(tmp_path / "whole.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    words = command(folder, "--out", str(tmp_path / "out.json"), "--log", str(log))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        for line in lines_of(process):
            if line["words"].startswith("needle at 512"):
                break
        os.kill(process.pid, signal.SIGKILL)
    finished = log.read_text().splitlines()
    assert len(finished) >= 5
    assert not (tmp_path / "out.json").exists()
    again = subprocess.run(words, check=True, capture_output=True, text=True)
    said = [json.loads(line) for line in again.stdout.splitlines()]
    assert not any(line["words"].startswith("perplexity") for line in said)
    assert said[-1]["done"] == said[-1]["total"]
    assert all(line["eta_seconds"] is None or line["eta_seconds"] >= 0 for line in said)
    report = read_report(tmp_path / "out.json")
    assert report == read_report(tmp_path / "whole.json")
    assert log.read_text().splitlines()[: len(finished) - 1] == finished[:-1]
    assert (report.original, report.window, report.informative) == (256, 1024, True)
    assert (needle_accuracy(report, 128) or 0) >= 0.9
    assert report.short is not None


def test_a_folder_without_a_tokenizer_ends_as_one_line_of_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = extended(tmp_path / "extended")
    (folder / "tokenizer.json").unlink()
    assert main(["--model", str(folder), "--out", str(tmp_path / "out.json")]) == 2
    error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert error["code"] == "model.no_tokenizer"
    assert error["next_step"]
    assert not (tmp_path / "out.json").exists()
