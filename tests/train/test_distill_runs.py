"""Real workers that learn from a teacher: killed anywhere they end as they would have, whoever teaches and however it
is held."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from engine.jobs import checkpoints, layout
from engine.jobs import events as ev
from engine.jobs.card_io import read_card
from engine.jobs.journal import JournalTail
from engine.jobs.spec import JobSpec, StageSection
from engine.jobs.store import create_run, load_state
from engine.train import checkpointing
from engine.train.teacher_record import read_record
from tests.support.forked_workers import ForkedWorkers
from tests.train.conftest import Finished, SpecMaker, build_tokenizer, chat, write_jsonl
from tests.train.test_grown_training import QUICK, UNPROVEN
from tests.train.test_recovery_memory import limited_to, recoveries, wide_spec
from tests.train.test_resume_is_exact import adapter_bytes, losses

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def larger(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of the tiny model's family: four layers, half as wide again, rows of padding behind its vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("larger-model")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=416, hidden_size=96, intermediate_size=160, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_model / name, folder / name)
    return folder


def run_to_end(workers: ForkedWorkers, spec: JobSpec) -> Finished:
    run_dir = create_run(spec)
    return Finished(run_dir, workers.run(run_dir))


def kill_when(workers: ForkedWorkers, run_dir: Path, wanted: Callable[[Any], bool]) -> None:
    """Start the worker and kill it with -9 as soon as such an event is in the journal."""
    workers.kill_when(run_dir, wanted)


def parts(run_dir: Path) -> dict[int, dict[str, float]]:
    """Of every step's loss; of one that was done twice the last."""
    return {event.step: event.losses for event in JournalTail(run_dir).read_new() if isinstance(event, ev.Step)}


def written(run_dir: Path) -> dict[int, tuple[int, int, str, str]]:
    events = JournalTail(run_dir).read_new()
    found = [event for event in events if isinstance(event, ev.Rollout)]
    return {one.step: (one.answers, one.tokens, one.prompt, one.text) for one in found}


def test_killed_in_steps_on_own_answers_a_run_with_a_teacher_in_4_bits_changes_no_bit(
    make_spec: SpecMaker, workers: ForkedWorkers, larger: Path
) -> None:
    spec = make_spec(
        "qlora",
        distillation={
            "teacher": str(larger), "held": "nf4", "loss": "jsd", "temperature": 2.0, "ce_weight": 0.3,
            "on_policy": 0.5, "rollout_tokens": 6,
        },
        training={"max_steps": 8, "gradient_accumulation": 2},
        stop={"spike_factor": 1.2},
        checkpoint={"every_steps": 2},
    )  # fmt: skip
    unbroken = run_to_end(workers, spec)
    assert unbroken.end.outcome == "finished", unbroken.log[-2000:]
    assert not recoveries(unbroken.run_dir), "losses on own answers are not held against the others"
    own = sorted(written(unbroken.run_dir))
    assert len(own) == 4, "half of the steps"
    told = parts(unbroken.run_dir)
    assert all(set(told[step]) == ({"teacher"} if step in own else {"labels", "teacher"}) for step in told)
    for step, (loss, _, _) in losses(unbroken.run_dir).items():
        share = 0.0 if step in own else 0.3
        assert loss == pytest.approx(
            share * told[step].get("labels", 0.0) + (1 - share) * told[step]["teacher"], rel=1e-5
        )

    broken = create_run(spec)
    kill_when(workers, broken, lambda event: isinstance(event, ev.Rollout) and event.step >= own[1])
    kill_when(workers, broken, lambda event: isinstance(event, ev.Step) and event.step >= own[2])
    resumed = Finished(broken, workers.run(broken))
    assert resumed.end.outcome == "finished", resumed.log[-2000:]
    assert len(resumed.of(ev.Start)) == 3
    assert losses(broken) == losses(unbroken.run_dir)
    assert parts(broken) == told
    assert written(broken) == written(unbroken.run_dir)
    assert adapter_bytes(resumed) == adapter_bytes(unbroken)

    one, other = (read_card(run_dir).teacher for run_dir in (unbroken.run_dir, broken))
    assert one is not None
    assert other is not None
    assert (one.name, one.held, one.parameters) == (str(larger), "nf4", other.parameters)
    assert one.loss == "jsd, beta 0.5, temperature 2, 30 % labels, 50 % of the steps on own answers"
    assert one.task_loss is not None
    assert (one.task_loss, one.exact_match, one.rollout_tokens) == (
        other.task_loss,
        other.exact_match,
        other.rollout_tokens,
    )
    lessons = load_state(broken).findings.lessons
    assert lessons.rollout_tokens == one.rollout_tokens == sum(tokens for _, tokens, _, _ in written(broken).values())
    assert lessons.rollout_tokens_per_second is not None
    assert lessons.losses == told[8]


TIGHT = """
from transformers import LlamaForCausalLM
generate = LlamaForCausalLM.generate
def tight(self, *arguments, **named):
    if len(named["input_ids"]) > 2 and "logits_processor" in named:
        raise MemoryError("no room for so many answers")
    return generate(self, *arguments, **named)
LlamaForCausalLM.generate = tight
"""
"""A preamble: more than two answers at a time do not fit."""
COUNTING = """
import gc
from engine.train import grown_stage, job, measuring
def counting(attempt, *arguments):
    models = [one for one in gc.get_objects() if type(one).__name__ == "LlamaForCausalLM"]
    attempt.say(f"{len(models)} model in memory")
    return measuring.measured_after(attempt, *arguments)
grown_stage.measured_after = job.measured_after = counting
"""
"""A preamble: how many models are alive when the result is measured."""


def said(run: Finished) -> list[str]:
    return [event.message for event in [*run.of(ev.Log), *run.of(ev.Warn)]]


def test_whole_weights_in_bfloat16_learn_from_a_teacher_and_from_answers_in_smaller_batches(
    make_spec: SpecMaker, workers: ForkedWorkers, larger: Path, tmp_path: Path
) -> None:
    """An attempt after the one whose memory ran out writes in batches that fit, and micro-batches stay whole."""
    rows = [*(chat(number) for number in range(30)), *({"text": f"The heron of {number}."} for number in range(4))]
    spec = make_spec(
        "full",
        data={"train": str(write_jsonl(tmp_path / "mixed.jsonl", rows)), "packing": False},
        distillation={"teacher": str(larger), "on_policy": 0.9, "rollout_tokens": 4},
        training={"dtype": "bfloat16", "max_steps": 3, "batch_size": 4, "learning_rate": 1e-3},
        evaluation=QUICK,
        checkpoint={"every_steps": 1},
    )
    run_dir = create_run(spec)
    kill_when(workers, run_dir, lambda event: isinstance(event, ev.Checkpoint))
    done = Finished(run_dir, workers.run(run_dir, TIGHT + COUNTING))
    assert done.end.outcome == "finished", done.log[-2000:]
    assert all(0 < one["teacher"] < 100 for one in parts(run_dir).values())
    assert "4 of 34 rows are plain text" in " ".join(said(done))
    assert "1 model in memory" in said(done), "the teacher had gone"
    (found,) = recoveries(run_dir)
    assert "2 times smaller batches" in found.remedy
    newest = run_dir / layout.CHECKPOINTS / checkpoints.folder_name(3)
    progress = msgspec.json.decode((newest / checkpointing.PROGRESS).read_bytes(), type=checkpointing.Progress)
    assert (progress.pieces, progress.writing_pieces) == (1, 2)


def test_its_own_base_teaches_an_adapter_without_a_second_model(make_spec: SpecMaker, workers: ForkedWorkers) -> None:
    done = run_to_end(
        workers,
        make_spec("lora", distillation={"teacher": "self", "hidden_weight": 0.5}, training={"learning_rate": 1e-3}),
    )
    assert done.end.outcome == "finished", done.log[-2000:]
    told = parts(done.run_dir)
    assert told[1]["teacher"] == 0, "an adapter begins as its base"
    assert told[1]["hidden"] == 0
    assert told[6]["teacher"] > 0
    assert told[6]["hidden"] > 0
    card = read_card(done.run_dir)
    assert card.teacher is not None
    assert card.before is not None
    assert card.teacher.held == "self"
    assert (card.teacher.task_loss, card.teacher.exact_match) == (card.before.task_loss, card.before.exact_match)

    pupil = run_to_end(workers, make_spec("full", distillation={"teacher": str(done.run_dir / "output" / "adapter")}))
    assert pupil.end.outcome == "finished", pupil.log[-2000:]
    taught = read_card(pupil.run_dir).teacher
    assert taught is not None
    assert taught.held == "resident", "auto: there is room"
    assert card.after is not None
    assert taught.task_loss == pytest.approx(card.after.task_loss, rel=1e-3), "the teacher is the adapter on its base"


def test_cached_logits_teach_what_the_teacher_does(
    make_spec: SpecMaker, workers: ForkedWorkers, larger: Path, tmp_path: Path
) -> None:
    common = {"teacher": str(larger), "top_k": 32, "ce_weight": 0.2, "temperature": 1.5}
    live = run_to_end(workers, make_spec("full", distillation={**common, "held": "resident"}))
    cache = {**common, "held": "cached", "cache": str(tmp_path / "logits")}
    spec = make_spec("full", distillation=cache)
    broken = create_run(spec)
    kill_when(workers, broken, lambda event: isinstance(event, ev.Step) and event.step == 2)
    gone = larger.rename(tmp_path / "gone")
    try:
        cached = Finished(broken, workers.run(broken))  # its logits are on disk: the teacher is not needed any more
    finally:
        gone.rename(larger)
    for run in (live, cached):
        assert run.end.outcome == "finished", run.log[-2000:]
    for step, told in parts(live.run_dir).items():
        assert parts(cached.run_dir)[step]["teacher"] == pytest.approx(told["teacher"], rel=0.02)
    (first, second) = (read_card(run.run_dir).teacher for run in (live, cached))
    assert first is not None
    assert second is not None
    assert second.held == "cached"
    assert second.cached_tokens > 0
    assert second.cached_bytes > 0
    assert second.task_loss == pytest.approx(first.task_loss), "measured while it was there, kept for the resume"
    assert any(event.name == "caching logits" for event in cached.of(ev.Phase))
    again = create_run(spec)
    kill_when(workers, again, lambda event: isinstance(event, ev.Teacher))
    found = read_record(again)
    assert found is not None
    assert (found.task_loss, found.exact_match) == (second.task_loss, second.exact_match)
    details = [event.detail for event in JournalTail(again).stream() if isinstance(event, ev.Phase)]
    assert not {"loading the teacher", "the teacher on held-out rows"} & set(details), "its logits are there"


def test_a_job_that_grows_learns_from_its_parent_in_every_stage(make_spec: SpecMaker, workers: ForkedWorkers) -> None:
    spec = make_spec(
        "full",
        distillation={"teacher": "self"},
        expansion=UNPROVEN,
        training={"learning_rate": 1e-3},
        evaluation=QUICK,
    )
    stages = ({"name": "deeper", "task": "new_blocks", "layers": 3, "max_steps": 2}, {"name": "all", "max_steps": 2})
    done = run_to_end(workers, msgspec.structs.replace(spec, stages=msgspec.convert(stages, tuple[StageSection, ...])))
    assert done.end.outcome == "finished", done.log[-2000:]
    told = parts(done.run_dir)
    assert told[1]["teacher"] == pytest.approx(0, abs=1e-6), "grown without a change of function"
    assert all(told[step]["teacher"] > 1e-5 for step in (3, 4)), "the second stage's teacher is the parent too"
    assert len(done.of(ev.Teacher)) == 1
    card = read_card(done.run_dir)
    assert card.teacher is not None
    assert card.teacher.held == "resident"


def test_a_teacher_with_another_tokenizer_teaches_by_sorted_probabilities(
    make_spec: SpecMaker, workers: ForkedWorkers, larger: Path, tmp_path: Path
) -> None:
    foreign = shutil.copytree(larger, tmp_path / "foreign")
    build_tokenizer(foreign, ["heron fjord juniper " * 5, "say it once more please", "NUMBER number"])
    run_dir = create_run(make_spec("lora", distillation={"teacher": str(foreign), "tokenizers": "uld"}))
    done = Finished(run_dir, workers.run(run_dir, COUNTING))
    assert done.end.outcome == "finished", done.log[-2000:]
    told = parts(done.run_dir)
    assert all(0 < one["teacher"] <= 2 for one in told.values()), "a distance of distributions"
    card = read_card(done.run_dir)
    assert card.teacher is not None
    assert card.teacher.loss.startswith("uld")
    assert card.teacher.task_loss is None, "its tokens are others"
    assert "1 model in memory" in said(done), "the teacher had gone"
    assert any("trained positions of the first step" in message for message in said(done))


def test_memory_that_runs_out_beside_a_teacher_splits_the_step(
    make_spec: SpecMaker, workers: ForkedWorkers, tmp_path: Path
) -> None:
    spec = wide_spec(make_spec, tmp_path, loss_chunk_tokens=100_000)
    section = msgspec.structs.replace(spec.distillation, teacher="self")
    spec = msgspec.structs.replace(spec, distillation=section)
    free = run_to_end(workers, spec)
    run_dir = create_run(spec)
    tight = Finished(run_dir, workers.run(run_dir, limited_to(270_000_000)))
    assert free.end.outcome == tight.end.outcome == "finished", tight.log[-2000:]
    assert [one.trouble for one in recoveries(tight.run_dir)] == ["out of memory"]
    for step, told in parts(free.run_dir).items():
        assert parts(tight.run_dir)[step] == pytest.approx(told, rel=1e-3, abs=1e-6)


def test_what_cannot_teach_is_refused_before_a_model_is_loaded(
    make_spec: SpecMaker, workers: ForkedWorkers, larger: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(larger, tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"<|im_end|>"', '"<|over|>"'))
    refused = run_to_end(workers, make_spec("lora", distillation={"teacher": str(other)}))
    assert refused.end.outcome == "failed"
    assert "other tokens" in refused.end.what
    assert "uld" in refused.end.next_step

    config = (other / "config.json").read_text()
    shutil.copy(larger / "tokenizer.json", other / "tokenizer.json")
    (other / "config.json").write_text(
        config.replace('"max_position_embeddings": 128', '"max_position_embeddings": 16')
    )
    short = run_to_end(workers, make_spec("lora", distillation={"teacher": str(other)}))
    assert short.end.outcome == "failed"
    assert "reads 16" in short.end.what
    assert "Lower data.max_length to 16" in short.end.next_step
    (other / "config.json").write_text(config)

    spec = make_spec("lora", distillation={"teacher": str(other)}, checkpoint={"every_steps": 1})
    run_dir = create_run(spec)
    kill_when(workers, run_dir, lambda event: isinstance(event, ev.Step) and event.step == 2)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-100:] = bytes(100)
    (other / "model.safetensors").write_bytes(weights)
    changed = Finished(run_dir, workers.run(run_dir))
    assert changed.end.outcome == "failed"
    assert "is not the one that the run began with" in changed.end.what
