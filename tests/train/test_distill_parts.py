"""What stands around the losses: rows found again in packed batches, teachers in evaluation mode, layers that visit the
device, the steps and prompts of own answers."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.data.packing import pack
from engine.data.rows import EncodedRow, RowKind
from engine.distill.hidden import decoder_layers
from engine.distill.knowledge import FullLogits, TopLogits
from engine.distill.losses import Divergence
from engine.distill.objective import Objective, Weights
from engine.distill.onpolicy import Writing, is_own_step, prompts_of, write_answers
from engine.distill.segments import segments_of
from engine.distill.streaming import LayerStream
from engine.distill.teacher import ModelTeacher, Says, own_teacher
from engine.errors import EngineError
from engine.evaluation.adapter_switch import AdapterSwitch
from engine.evaluation.head import Wanted
from engine.evaluation.model import LoadedModel
from engine.jobs.spec import AdapterSection
from engine.train.batches import Collator, SequenceDataset
from engine.train.environment import Device
from engine.train.model import BaseRequest, add_adapter, load_base, ready
from engine.train.pieces import Split
from engine.train.taught_steps import Batching, TaughtSteps

pytestmark = pytest.mark.slow
DEVICE = Device("cpu", "test", torch.float32)


def load(folder: Path, *, adapter: AdapterSection | None = None) -> LoadedModel:
    from engine.data.tokenizer import ChatTokenizer

    base = load_base(BaseRequest(folder, "none", True, torch.float32, "cpu"))
    model = base if adapter is None else add_adapter(base, adapter)
    return ready(model, base, ChatTokenizer.load(folder), DEVICE)


def row(number: int, prompt: int, answer: int, *, turns: int = 1) -> EncodedRow:
    """`turns` times some tokens of prompt and some of answer."""
    ids = tuple(4 + (number * 31 + place * 7) % 300 for place in range(turns * (prompt + answer)))
    trained = ((False,) * prompt + (True,) * answer) * turns
    return EncodedRow(ids, trained, number, RowKind.CHAT, full_length=len(ids))


def batch_of(rows: list[EncodedRow], longest: int) -> dict[str, Any]:
    return Collator(0)(SequenceDataset(pack(rows, longest)).sequences)


def wanted_of(batch: dict[str, Any]) -> Wanted:
    return Wanted(batch["input_ids"], batch["position_ids"], batch["positions"])


ROWS = [row(1, 6, 3), row(2, 4, 4, turns=2), row(3, 9, 2), row(4, 3, 1)]


def test_rows_are_found_again_in_a_packed_batch() -> None:
    batch = batch_of(ROWS, 24)
    assert batch["input_ids"].shape[0] > 1
    found = list(segments_of(wanted_of(batch)))
    assert sorted(one.ids for one in found) == sorted(one.input_ids for one in ROWS)
    targets = batch["targets"].tolist()
    for one in found:
        (source,) = [two for two in ROWS if two.input_ids == one.ids]
        assert one.wanted == tuple(place - 1 for place, trained in enumerate(source.trained) if trained)
        assert targets[one.first : one.first + len(one.wanted)] == [one.ids[place + 1] for place in one.wanted]


def test_the_prompt_of_a_row_is_all_before_its_last_answer() -> None:
    text = EncodedRow((5, 6, 7, 8), (False, True, True, True), 9, RowKind.TEXT, full_length=4)
    prompts = prompts_of([wanted_of(batch_of([*ROWS, text], 24))])
    assert sorted(prompts) == sorted(
        [ROWS[0].input_ids[:6], ROWS[1].input_ids[:12], ROWS[2].input_ids[:9], ROWS[3].input_ids[:3]]
    ), "plain text has none"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_any_run_of_steps_has_its_share_of_own_answers(share: float) -> None:
    patterns = set()
    for seed in range(5):
        writing = Writing(share, 4, 1.0, 24, seed)
        own = [is_own_step(writing, step) for step in range(1, 201)]
        assert all(abs(sum(own[first : first + 40]) - 40 * share) < 1 for first in range(160))
        patterns.add(tuple(own))
    assert share in (0.0, 1.0) or len(patterns) > 1, "the seed says where it begins"


def test_own_answers_follow_from_seed_step_and_weights_and_leave_the_generators_alone(tiny_model: Path) -> None:
    student = load(tiny_model)
    prompts = prompts_of([wanted_of(batch_of(ROWS, 24))])
    writing = Writing(0.5, 8, 1.0, 18, seed=3)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = write_answers(student, prompts, writing, step=4)
    assert torch.equal(torch.rand(3), expected)
    assert write_answers(student, prompts, writing, step=4) == first
    assert write_answers(student, prompts, writing, step=5) != first
    assert [one.prompt for one in first] == prompts
    assert all(1 <= len(one.answer) <= 8 for one in first)
    assert all(len(one.prompt) + len(one.answer) <= 18 for one in first)
    ends = {student.tokenizer.eos_id}
    assert all(not ends & set(one.answer[:-1]) for one in first), "nothing behind the end token"


def test_greedy_answers_are_the_most_likely_tokens(tiny_model: Path) -> None:
    """Whatever the model's folder recommends for a chat."""
    student = load(tiny_model)
    (answer,) = write_answers(student, [ROWS[0].input_ids[:6]], Writing(1.0, 5, 0.0, 24, 0), step=1)
    recommended = student.model.generation_config
    recommended.suppress_tokens, recommended.repetition_penalty = list(answer.answer), 5.0
    recommended.min_new_tokens = 4
    (again,) = write_answers(student, [ROWS[0].input_ids[:6]], Writing(1.0, 5, 0.0, 24, 0), step=1)
    assert again == answer
    assert student.model.generation_config is recommended
    assert recommended.suppress_tokens == list(answer.answer)
    ids = list(answer.prompt)
    for token in answer.answer:
        with student.inference():
            logits = student.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        assert int(logits.argmax()) == token
        ids.append(token)


def test_sampled_answers_follow_the_students_distribution(tiny_model: Path) -> None:
    """400 first tokens at temperature 0.5 against its probabilities, chi-square over the likely ones."""
    student, prompt = load(tiny_model), ROWS[0].input_ids[:6]
    student.model.generation_config.update(do_sample=True, typical_p=0.3, epsilon_cutoff=0.2, eta_cutoff=0.2, top_k=2)
    answers = write_answers(student, [prompt] * 400, Writing(1.0, 1, 0.5, 24, 0), step=1)
    with student.inference():
        logits = student.model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
    expected = torch.softmax(logits / 0.5, -1) * 400
    seen = torch.bincount(torch.tensor([one.answer[0] for one in answers]), minlength=384).double()
    likely = expected > 5
    assert int(likely.sum()) > 3
    apart = ((seen - expected)[likely] ** 2 / expected[likely]).sum()
    assert float(apart) < 3 * float(likely.sum()) + 10


def test_no_token_that_the_teacher_lacks_is_written(tiny_model: Path) -> None:
    student, prompt = load(tiny_model), ROWS[0].input_ids[:6]
    free = write_answers(student, [prompt] * 32, Writing(1.0, 4, 5.0, 24, 0), step=1)
    bound = write_answers(student, [prompt] * 32, Writing(1.0, 4, 5.0, 24, 0, vocabulary=100), step=1)
    assert max(max(one.answer) for one in free) >= 100
    assert max(max(one.answer) for one in bound) < 100


def test_an_adapters_own_base_teaches_whatever_the_adapter_has_learnt(tiny_model: Path) -> None:
    batch, plain = batch_of(ROWS, 24), load(tiny_model)
    student = load(tiny_model, adapter=AdapterSection(rank=4, alpha=8, dropout=0.5, targets=("q_proj", "lm_head")))
    with torch.no_grad():
        for name, parameter in student.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    student.model.train()
    taught = own_teacher(student, Says()).at(wanted_of(batch)).chunk(2, 7)
    assert isinstance(taught, FullLogits)
    with plain.inference():
        expected = plain.head.logits_of(plain.model, wanted_of(batch))[2:7]
    torch.testing.assert_close(taught.logits, expected, rtol=1e-5, atol=1e-5)
    assert student.model.training, "left as it was"
    assert all(one.requires_grad for name, one in student.model.named_parameters() if "lora_" in name)


def test_an_adapter_is_switched_off_as_peft_does_it_and_nothing_learns_that_did_not(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers, heads trained as a whole and single rows of the embeddings."""
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], use_dora=True, modules_to_save=["lm_head"],
        trainable_token_indices={"embed_tokens": [5, 6, 7]},
    )  # fmt: skip
    model: Any = get_peft_model(load(tiny_model).model, config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad:
                one.add_(torch.randn(one.shape, generator=generator))
    next(one for one in model.parameters() if one.requires_grad).requires_grad_(False)
    ids = torch.tensor([[5, 6, 7, 8, 9]])

    def logits() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=ids).logits
        return found

    learns = [one.requires_grad for one in model.parameters()]
    adapted, switch = logits(), AdapterSwitch(model)
    with monkeypatch.context() as patched:
        patched.setattr(PeftModel, "get_model_status", None)  # what makes peft's own way slow
        with switch.off():
            plain = logits()
            with switch.off():
                assert torch.equal(logits(), plain)
            assert torch.equal(logits(), plain)
    assert torch.equal(logits(), adapted)
    assert [one.requires_grad for one in model.parameters()] == learns
    assert not torch.allclose(plain, adapted)
    with model.disable_adapter():
        assert torch.equal(logits(), plain)


def steps_of(student: LoadedModel, warned: list[str], **writing: Any) -> TaughtSteps:
    """Every step on own answers."""
    objective = Objective(student, own_teacher(student, Says()), Divergence(), Weights())
    order = Writing(share=1.0, new_tokens=4, temperature=1.0, longest=24, seed=0, **writing)
    return TaughtSteps(student, objective, order, Batching(0, 24, 2, True), lambda _: None, warned.append, lambda: None)


def test_a_step_without_prompts_learns_on_its_rows_and_says_so(tiny_model: Path) -> None:
    everything = [EncodedRow((5, 6, 7, 8), (False, True, True, True), 9, RowKind.CHAT, full_length=4)]
    warned: list[str] = []
    items = [batch_of(everything, 24)]
    assert steps_of(load(tiny_model), warned).items(items, 1, 1) == (items, None)
    assert len(warned) == 1
    assert "no prompt" in warned[0]


def test_memory_that_runs_out_over_answers_is_met_with_smaller_batches_down_to_one(
    tiny_model: Path, request: pytest.FixtureRequest
) -> None:
    student, room, sizes = load(tiny_model), [4], []
    generate = student.model.generate

    def tight(**named: Any) -> Any:
        sizes.append(len(named["input_ids"]))
        if sizes[-1] > room[0]:
            raise MemoryError("no room")
        return generate(**named)

    student.model.generate = tight
    gc.freeze()  # what this process has loaded is no garbage, and slow to look through
    request.addfinalizer(gc.unfreeze)
    steps, items = steps_of(student, []), [batch_of([row(number, 6, 3) for number in range(40)], 24)]
    written, split = steps.items(items, 1, 1)
    assert split == Split(8, "no room", answers=True)
    assert sizes == [32, 16, 8, *[4] * 10]
    assert sum(len(batch["input_ids"]) for batch in written[0]) > 0
    room[0], sizes[:] = 0, []
    with pytest.raises(EngineError) as refused:
        steps.items(items, 2, 1)
    assert refused.value.code == "train.out_of_memory"
    assert sizes == [32, 16, 8, 4, 2, 1], "a batch of one is not tried twice"


def test_packed_rows_are_taught_as_if_each_were_alone_and_without_dropout(tiny_model: Path) -> None:
    teacher = load(tiny_model, adapter=AdapterSection(rank=4, alpha=8, dropout=0.5))
    with torch.no_grad():
        for name, parameter in teacher.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    teacher.model.train()
    asked, batch = ModelTeacher(teacher, Says(vocabulary=300)), batch_of(ROWS, 24)
    view = asked.at(wanted_of(batch))
    for segment in segments_of(wanted_of(batch)):
        ids = torch.tensor([segment.ids])
        alone = Wanted(ids, torch.arange(ids.shape[1])[None], torch.tensor(segment.wanted))
        one = asked.at(alone).chunk(0, len(segment.wanted))
        together = view.chunk(segment.first, segment.first + len(segment.wanted))
        assert isinstance(one, FullLogits)
        assert isinstance(together, FullLogits)
        assert one.logits.shape[1] == 300
        torch.testing.assert_close(together.logits, one.logits, rtol=1e-4, atol=1e-4)
    assert not view.chunk(0, 3).logits.requires_grad  # type: ignore[union-attr]
    top = ModelTeacher(teacher, Says(vocabulary=300, top_k=5, temperature=2.0)).at(wanted_of(batch)).chunk(0, 3)
    assert isinstance(top, TopLogits)
    mass = top.log_probs.exp().sum(-1) + top.missing_log_mass.exp()
    torch.testing.assert_close(mass, torch.ones(3), rtol=1e-5, atol=1e-5)


class Watched(LayerStream):
    """Counts what it does with weights."""

    def __init__(self, model: Any, layers: Any) -> None:
        self.originals = [weakref.ref(one) for layer in layers for one in layer.parameters()]
        self.alive: list[int] = []
        """Originals, as each is copied to pinned memory."""
        super().__init__(model, layers, "cpu")

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        self.alive.append(sum(one() is not None for one in self.originals))
        return tensor.detach().clone()

    @property
    def device_layers(self) -> int:
        """Layers whose weights are on the device now, or on their way."""
        pairs = [(slots[0], host[0]) for slots, host in zip(self._slots, self._host, strict=True)]
        here = [holder[name].data_ptr() != tensor.data_ptr() for (holder, name), tensor in pairs]
        return here.count(True) + len(self._coming)


def test_layers_that_visit_the_device_compute_the_same_and_two_at_most_are_there(tiny_model: Path) -> None:
    whole, streamed, batch = load(tiny_model), load(tiny_model), batch_of(ROWS, 24)
    layers = decoder_layers(streamed.model)
    stream = Watched(streamed.model, layers)
    per_layer = len(stream.originals) // len(layers)
    assert len(stream.alive) == 2 * per_layer
    assert max(stream.alive[per_layer:]) == per_layer, "the first layer's were gone before the second was pinned"
    assert stream.device_layers == 0
    most: list[int] = []
    for layer in layers:
        layer.mlp.register_forward_hook(lambda *_: most.append(stream.device_layers))
    expected = ModelTeacher(whole, Says()).at(wanted_of(batch))
    for _ in range(2):
        found = ModelTeacher(streamed, Says()).at(wanted_of(batch))
        assert torch.equal(found.states, expected.states)
        assert stream.device_layers == 0, "all have left"
    assert most == [2, 1] * 2, "the one that computes and the next; the last has none after it"


def test_a_pass_that_fails_leaves_no_layer_on_the_device(tiny_model: Path) -> None:
    streamed, batch = load(tiny_model), batch_of(ROWS, 24)
    layers = decoder_layers(streamed.model)
    stream = Watched(streamed.model, layers)
    seen: list[int] = []

    def fail(*_: Any) -> None:
        seen.append(stream.device_layers)
        raise MemoryError

    failing = layers[0].mlp.register_forward_hook(fail)
    teacher = ModelTeacher(streamed, Says())
    for _ in range(2):
        with pytest.raises(MemoryError):
            teacher.at(wanted_of(batch))
        assert stream.device_layers == 0
    assert seen == [2, 2]
    failing.remove()
    assert torch.equal(
        teacher.at(wanted_of(batch)).states, ModelTeacher(load(tiny_model), Says()).at(wanted_of(batch)).states
    )
