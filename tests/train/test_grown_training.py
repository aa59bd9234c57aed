"""Training what was grown, on the real worker: what is old stays to the bit where it must, what is new learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors import safe_open

from engine.expansion.certificate import Certificate, read_certificate
from engine.jobs import events as ev
from engine.jobs.card_io import read_card
from tests.train.conftest import Finished, RunWorker, SpecMaker

QUICK = {"max_new_tokens": 4, "exact_match_rows": 2}
UNPROVEN = {"proof": False, "seed": 3}


def stored(folder: Path) -> dict[str, Any]:
    """Every tensor of a model folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                found[name] = file.get_tensor(name)
    return found


def certificate_of(finished: Finished, stage: int = 1) -> Certificate:
    found = read_certificate(finished.run_dir / "stages" / f"{stage:02}")
    assert found is not None
    return found


def grown_again(finished: Finished, tmp_path: Path, source: Path, **sizes: Any) -> dict[str, Any]:
    """What the run's growth made, made once more: equal plans of equal sources give equal bytes."""
    from engine.advise.growth_plan import plan_growth, shape_of
    from engine.jobs.spec import ExpansionSection
    from engine.surgery.expand import ExpandRequest, expand

    section = msgspec.convert({**UNPROVEN, **sizes}, ExpansionSection)
    plan = plan_growth(section, shape_of(source)).choice.plan
    expand(ExpandRequest(source, tmp_path / "again", plan, proof=False), lambda _: None)
    return stored(tmp_path / "again")


def old_entries(certificate: Certificate, name: str) -> Any:
    """Flags over a stored tensor: True where the certificate says old."""
    import torch

    entry = certificate.tensors[name]
    new = torch.zeros(entry.shape, dtype=torch.bool)
    if entry.new:
        return ~torch.ones_like(new)
    for axis, spans in enumerate(entry.new_spans):
        for begin, end in spans:
            new.narrow(axis, begin, end - begin).fill_(True)
    return ~new


@pytest.mark.slow
def test_new_blocks_train_alone_and_the_result_is_a_plain_model(
    make_spec: SpecMaker, run_worker: RunWorker, tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    done = run_worker(make_spec("new_blocks", expansion={**UNPROVEN, "layers": 4}, evaluation=QUICK))
    assert done.end.outcome == "finished", done.log[-2000:]
    trained, start = stored(done.run_dir / "output" / "model"), grown_again(done, tmp_path, tiny_model, layers=4)
    certificate = certificate_of(done)
    moved = {name for name, value in trained.items() if not torch.equal(value, start[name])}
    assert moved
    assert moved <= {name for name, entry in certificate.tensors.items() if entry.new}
    closing = [name for name in certificate.tensors if certificate.tensors[name].new and "down_proj" in name]
    assert moved.issuperset(closing), "the zeroed ends of the new blocks are what learns first"
    model = AutoModelForCausalLM.from_pretrained(done.run_dir / "output" / "model")
    assert model.config.num_hidden_layers == 4
    plan = done.of(ev.Plan)[0]
    assert plan.trainable_parameters == sum(
        start[name].numel() for name in certificate.tensors if certificate.tensors[name].new
    )
    card = read_card(done.run_dir)
    assert card.adapter.kind == "model"
    assert card.before is not None
    assert card.after is not None
    assert card.after.task_loss < card.before.task_loss
    assert card.growths[0].parameters_after > card.growths[0].parameters_before


@pytest.mark.slow
def test_old_coordinates_wait_to_the_bit_under_decay_and_clipping_and_then_join(
    make_spec: SpecMaker, run_worker: RunWorker, tiny_model: Path, tmp_path: Path
) -> None:
    import torch

    sizes = {"hidden": 96, "ffn": 192, "layers": 3}
    training = {"max_steps": 6, "weight_decay": 0.1, "max_grad_norm": 0.5, "unfreeze_after": 0}
    waits = run_worker(
        make_spec("new_coordinates", expansion={**UNPROVEN, **sizes}, training=training, evaluation=QUICK)
    )
    assert waits.end.outcome == "finished", waits.log[-2000:]
    certificate = certificate_of(waits)
    start, trained = grown_again(waits, tmp_path, tiny_model, **sizes), stored(waits.run_dir / "output" / "model")
    mixed = [name for name, entry in certificate.tensors.items() if any(entry.new_spans) and not entry.new]
    assert len(mixed) > 10
    for name in certificate.tensors:
        old = old_entries(certificate, name)
        bits = torch.int16 if trained[name].element_size() == 2 else torch.int32
        before, after = start[name].view(bits), trained[name].view(bits)
        assert torch.equal(before[old], after[old]), f"old entries of {name} moved"
    assert sum(not torch.equal(trained[name], start[name]) for name in mixed) > len(mixed) / 2

    joins = run_worker(
        make_spec(
            "new_coordinates",
            expansion={**UNPROVEN, **sizes},
            training={**training, "unfreeze_after": 3},
            evaluation=QUICK,
        )
    )
    assert joins.end.outcome == "finished", joins.log[-2000:]
    joined = stored(joins.run_dir / "output" / "model")
    name = next(name for name in mixed if "gate_proj" in name)
    old = old_entries(certificate, name)
    assert not torch.equal(joined[name][old], start[name][old])
    assert losses(joins)[:3] == losses(waits)[:3], "until they join, both runs are one"
    assert losses(joins)[4:] != losses(waits)[4:]


def losses(finished: Finished) -> list[float]:
    return [step.loss for step in finished.of(ev.Step)]


@pytest.mark.slow
def test_the_old_part_in_4_bits_is_written_back_as_it_was_and_the_new_part_in_full(
    make_spec: SpecMaker, run_worker: RunWorker, tiny_model: Path, tmp_path: Path
) -> None:
    import torch

    sizes = {"ffn": 192, "layers": 3}
    done = run_worker(make_spec("qlora_grown", expansion={**UNPROVEN, **sizes}, evaluation=QUICK))
    assert done.end.outcome == "finished", done.log[-2000:]
    certificate = certificate_of(done)
    start, trained = grown_again(done, tmp_path, tiny_model, **sizes), stored(done.run_dir / "output" / "model")
    assert set(trained) == set(start)
    for name, entry in certificate.tensors.items():
        untouched = not entry.new and not any(entry.new_spans)
        if untouched:
            assert torch.equal(trained[name], start[name]), name
        assert trained[name].dtype == start[name].dtype
    assert any(not torch.equal(trained[name], start[name]) for name in trained)
    plan = done.of(ev.Plan)[0]
    assert plan.parameters == sum(value.numel() for value in start.values())
    assert losses(done)[-1] < losses(done)[0]


@pytest.mark.slow
def test_full_training_learns_everywhere_with_a_rate_of_its_own_for_what_is_new(
    make_spec: SpecMaker, run_worker: RunWorker, tiny_model: Path, tmp_path: Path
) -> None:
    import torch

    sizes = {"hidden": 96}
    training = {"learning_rate": 1e-9, "new_learning_rate": 1e-2, "max_steps": 4}
    done = run_worker(make_spec("full", expansion={**UNPROVEN, **sizes}, training=training, evaluation=QUICK))
    assert done.end.outcome == "finished", done.log[-2000:]
    certificate = certificate_of(done)
    start, trained = grown_again(done, tmp_path, tiny_model, **sizes), stored(done.run_dir / "output" / "model")
    name = "model.layers.0.mlp.gate_proj.weight"
    old = old_entries(certificate, name)
    assert torch.equal(trained[name][old], start[name][old]), "a rate of 1e-9 is lost in bfloat16"
    assert not torch.equal(trained[name][~old], start[name][~old])


@pytest.mark.slow
def test_a_model_that_was_never_grown_is_refused_for_tasks_that_need_to_know_what_is_new(
    make_spec: SpecMaker, run_worker: RunWorker
) -> None:
    done = run_worker(make_spec("new_blocks"))
    assert done.end.outcome == "failed"
    assert "nothing in it is known to be new" in done.end.what
    assert "full" in done.end.next_step


@pytest.mark.slow
def test_new_blocks_of_a_model_that_was_only_widened_are_refused_with_the_task_that_fits(
    make_spec: SpecMaker, run_worker: RunWorker
) -> None:
    done = run_worker(make_spec("new_blocks", expansion={**UNPROVEN, "ffn": 192}))
    assert done.end.outcome == "failed"
    assert "new_coordinates" in done.end.next_step
