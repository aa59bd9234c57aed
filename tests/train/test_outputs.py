"""What a run leaves behind loads with plain peft and plain transformers, and says how much merging changed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from engine.data.load import prepare
from engine.evaluation.rows import score_rows
from engine.jobs.card import Card, MergeCheck
from engine.train.environment import Device
from engine.train.merge import merge_run
from engine.train.model import BaseRequest, load_base, ready
from tests.train.conftest import Finished, RunWorker, SpecMaker


def card_of(finished: Finished) -> Card:
    return msgspec.json.decode((finished.run_dir / "card.json").read_bytes(), type=Card)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["qlora", "lora"])
def test_adapter_and_merged_model_load_elsewhere(
    make_spec: SpecMaker, run_worker: RunWorker, tiny_model: Path, task: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = make_spec(task, output={"merge": True}, training={"max_steps": 30})
    done = run_worker(spec)
    assert done.end.outcome == "finished", done.log
    adapter, merged = done.run_dir / "output/adapter", done.run_dir / "output/merged"
    data = prepare(spec.data, tiny_model)
    device = Device("cpu", "test", torch.float32)

    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with_adapter = PeftModel.from_pretrained(base, str(adapter))
    assert with_adapter.peft_config["default"].base_model_name_or_path == str(tiny_model)
    plain = ready(with_adapter, base, data.tokenizer, device)
    plain_loss = score_rows(plain, data.heldout).loss

    model = AutoModelForCausalLM.from_pretrained(merged)
    assert model.config.use_cache is True
    assert {tensor.dtype for tensor in load_file(merged / "model.safetensors").values()} == {torch.bfloat16}
    tokenizer = AutoTokenizer.from_pretrained(merged)
    row = data.train[1]
    chat = [{"role": "user", "content": row.messages[0].content}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
    assert tuple(ids) == row.input_ids[: len(ids)]

    check = card_of(done).merged
    assert check is not None
    merged_model = load_base(BaseRequest(merged, "none", False, torch.float32, "cpu"))
    merged_loss = score_rows(ready(merged_model, merged_model, data.tokenizer, device), data.heldout).loss
    assert check.merged_task_loss == pytest.approx(merged_loss, abs=1e-4)
    assert merged_loss == pytest.approx(plain_loss, abs=0.05), "merged = adapter on the unquantised base"
    assert check.adapter_task_loss == pytest.approx(card_of(done).after.task_loss, abs=1e-4)
    assert 0 < check.mean_logit_difference <= check.max_logit_difference
    assert check.same_top_token > 0.8
    assert check.base_dtype == ("nf4" if task == "qlora" else "float32")
    if task == "qlora":
        assert check.stored_base_difference is not None
        assert check.stored_base_difference < check.relative_difference, "what rounding does against what packing did"


@pytest.mark.slow
def test_a_finished_run_can_be_merged_later(make_spec: SpecMaker, run_worker: RunWorker) -> None:
    done = run_worker(make_spec())
    assert card_of(done).merged is None
    check = merge_run(done.run_dir)
    assert isinstance(check, MergeCheck)
    assert (done.run_dir / check.path / "model.safetensors").is_file()
    assert card_of(done).merged == check
    assert [path.name for path in (done.run_dir / "output").iterdir() if path.name.startswith(".")] == []
