"""Losses against a teacher, each held against its textbook formula written out by hand in double precision; in chunks
and in pieces they are the same numbers, and what they keep does not grow with the vocabulary times the tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.distill.hidden import LayerEar, compared_layers
from engine.distill.knowledge import FullLogits, TopLogits, top_of
from engine.distill.losses import Divergence
from engine.distill.objective import Objective, Weights
from engine.distill.teacher import ModelTeacher, Says
from engine.errors import EngineError
from engine.evaluation.head import SelectiveHead, Wanted
from engine.evaluation.model import LoadedModel
from engine.jobs.spec_distillation import DistillLoss, MissingMass
from engine.train.model import checkpoint_activations
from engine.train.pieces import split
from tests.support.live_bytes import watch

pytestmark = pytest.mark.slow
KINDS = tuple(DistillLoss)
BETA = 0.3
ROWS, WORDS = 3, 7


# ── the formulas, by hand ─────────────────────────────────────────────────────────────────────────────────────────
def softened(logits: list[float], temperature: float) -> list[float]:
    total = sum(math.exp(one / temperature) for one in logits)
    return [math.exp(one / temperature) / total for one in logits]


def summands(kind: DistillLoss, p: float, q: float) -> float:
    """One outcome's part of the divergence."""
    if kind is DistillLoss.FORWARD_KL:
        return p * math.log(p / q)
    if kind is DistillLoss.REVERSE_KL:
        return q * math.log(q / p)
    m = BETA * p + (1 - BETA) * q
    return BETA * p * math.log(p / m) + (1 - BETA) * q * math.log(q / m)


def textbook(
    kind: DistillLoss,
    student: list[float],
    teacher: list[float],
    temperature: float,
    k: int = 0,
    missing: MissingMass = MissingMass.REST,
) -> float:
    """T^2 times the divergence of one position, over all outcomes or the teacher's k largest."""
    p, q = softened(teacher, temperature), softened(student, temperature)
    if k:
        kept = sorted(range(len(p)), key=lambda one: -p[one])[:k]
        inside_p, inside_q = sum(p[one] for one in kept), sum(q[one] for one in kept)
        p, q = [p[one] for one in kept], [q[one] for one in kept]
        if missing is MissingMass.REST:
            p, q = [*p, 1 - inside_p], [*q, 1 - inside_q]
        elif missing is MissingMass.RENORMALISE:
            p, q = [one / inside_p for one in p], [one / inside_q for one in q]
    return temperature**2 * sum(summands(kind, one, other) for one, other in zip(p, q, strict=True))


def slopes(of: Any, student: list[float]) -> list[float]:
    """Central differences of the hand-written formula."""
    found = []
    for place in range(len(student)):
        step = 1e-5
        up, down = list(student), list(student)
        up[place] += step
        down[place] -= step
        found.append((of(up) - of(down)) / (2 * step))
    return found


def some_logits(seed: int, words: int = WORDS) -> Tensor:
    return 2 * torch.randn(ROWS, words, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_each_divergence_and_its_gradient_is_the_textbooks(kind: DistillLoss, temperature: float) -> None:
    student, teacher = some_logits(1).requires_grad_(), some_logits(2)
    found = Divergence(kind, temperature, BETA)(student, FullLogits(teacher))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    for row in range(ROWS):
        theirs = teacher[row].tolist()
        expected = textbook(kind, student[row].tolist(), theirs, temperature)
        assert found[row].item() == pytest.approx(expected, rel=1e-12)
        slope = slopes(lambda own, theirs=theirs: textbook(kind, own, theirs, temperature), student[row].tolist())
        assert gradient[row].tolist() == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("missing", list(MissingMass))
@pytest.mark.parametrize("kind", KINDS)
def test_the_top_of_a_teacher_is_handled_as_said(kind: DistillLoss, missing: MissingMass) -> None:
    student, teacher, temperature, k = some_logits(3).requires_grad_(), some_logits(4), 2.0, 3
    exact = torch.log_softmax(teacher / temperature, -1)
    kept, ids = exact.topk(k, -1)
    rest = torch.log1p(-kept.exp().sum(-1))
    found = Divergence(kind, temperature, BETA, missing)(student, TopLogits(ids, kept, rest))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    for row in range(ROWS):
        theirs = teacher[row].tolist()
        expected = textbook(kind, student[row].tolist(), theirs, temperature, k, missing)
        assert found[row].item() == pytest.approx(expected, rel=1e-10)
        slope = slopes(
            lambda own, theirs=theirs: textbook(kind, own, theirs, temperature, k, missing), student[row].tolist()
        )
        assert gradient[row].tolist() == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("missing", list(MissingMass))
def test_the_top_of_everything_is_everything(missing: MissingMass) -> None:
    student, teacher = some_logits(5), some_logits(6)
    for kind in KINDS:
        whole = Divergence(kind, 2.0, BETA)(student, FullLogits(teacher))
        top = Divergence(kind, 2.0, BETA, missing)(student, top_of(teacher, WORDS, 2.0))
        torch.testing.assert_close(top, whole, rtol=1e-5, atol=1e-6)


def test_merging_what_is_left_out_never_makes_the_divergence_larger() -> None:
    student, teacher = some_logits(7), some_logits(8)
    for kind in KINDS:
        whole = Divergence(kind, 1.0, BETA)(student, FullLogits(teacher))
        for k in range(1, WORDS):
            top = Divergence(kind, 1.0, BETA)(student, top_of(teacher, k, 1.0))
            assert bool((top <= whole + 1e-6).all())
            assert bool((top >= -1e-6).all())


def test_rows_behind_the_shared_vocabulary_count_for_neither() -> None:
    student, teacher = some_logits(9, WORDS + 4), some_logits(10, WORDS + 2)
    shared = Divergence(DistillLoss.FORWARD_KL, vocabulary=WORDS)(student, FullLogits(teacher))
    cut = Divergence(DistillLoss.FORWARD_KL)(student[:, :WORDS], FullLogits(teacher[:, :WORDS]))
    assert torch.equal(shared, cut)


def test_a_position_without_knowledge_has_no_loss_and_no_gradient() -> None:
    student, teacher = some_logits(11).requires_grad_(), some_logits(12)
    found = Divergence()(student, FullLogits(teacher, torch.tensor([True, False, True])))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert found[1] == 0
    assert found[0] > 0
    assert not gradient[1].any()


# ── micro-batches ─────────────────────────────────────────────────────────────────────────────────────────────────
def llama(words: int = 48, *, layers: int = 2, seed: int = 0, width: int = 32) -> LoadedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=words, hidden_size=width, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return LoadedModel(model, SelectiveHead(model), None, "cpu", torch.float64)  # type: ignore[arg-type]


def packed_batch(words: int = 48) -> dict[str, Any]:
    """Two sequences of two rows each; the trained tokens are the second half of every row."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, words, (2, 20), generator=generator)
    places = torch.cat([torch.arange(12), torch.arange(8)]).expand(2, 20).contiguous()
    flat = torch.tensor([row * 20 + place for row in range(2) for place in (*range(6, 11), *range(15, 19))])
    return {
        "input_ids": ids,
        "position_ids": places,
        "positions": flat,
        "targets": ids.reshape(-1)[flat + 1],
    }


def wanted_of(batch: dict[str, Any]) -> Wanted:
    return Wanted(batch["input_ids"], batch["position_ids"], batch["positions"])


def by_hand(student: LoadedModel, teacher: LoadedModel, batch: dict[str, Any], weights: Weights) -> Tensor:
    """Row by row, unpacked, every logit at once."""
    total = torch.zeros((), dtype=torch.float64)
    for sequence in range(2):
        for first, last, trained in ((0, 12, range(6, 11)), (12, 20, range(3, 7))):
            ids = batch["input_ids"][sequence, first:last][None]
            own = student.model(input_ids=ids, use_cache=False, output_hidden_states=True)
            with torch.no_grad():
                theirs = teacher.model(input_ids=ids, use_cache=False, output_hidden_states=True)
            for place in trained:
                log_q, log_p = own.logits[0, place].log_softmax(-1), theirs.logits[0, place].log_softmax(-1)
                total = total - weights.labels * log_q[ids[0, place + 1]]
                total = total + (1 - weights.labels) * (log_p.exp() * (log_p - log_q)).sum()
                # hidden_states[1] is the stream after the first layer
                apart = (own.hidden_states[1][0, place] - theirs.hidden_states[1][0, place]) ** 2
                total = total + weights.hidden * apart.mean()
    return total


def gradients(loss: Tensor, student: LoadedModel) -> dict[str, Tensor]:
    student.model.zero_grad()
    loss.backward()
    return {name: one.grad.clone() for name, one in student.model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("chunk", [0, 4, 17])
def test_a_packed_micro_batch_in_chunks_has_the_loss_and_gradients_of_its_rows(chunk: int) -> None:
    student, teacher = llama(seed=1), llama(seed=2, layers=4)
    weights = Weights(labels=0.4, hidden=0.7)
    own, theirs = compared_layers((1,), 2, 4)
    assert (own, theirs) == ((1,), (2,))
    batch = packed_batch()
    objective = Objective(
        student,
        ModelTeacher(teacher, Says(), ear=LayerEar(teacher.model, (1,))),
        Divergence(),
        weights,
        LayerEar(student.model, own),
        chunk_tokens=chunk,
    )
    checkpoint_activations(student.model, offload=False)
    student.model.train()
    loss = objective.loss(student.model, wanted_of(batch), batch["targets"])
    found = gradients(loss, student)
    expected = by_hand(student, teacher, batch, weights)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    for name, gradient in gradients(expected, student).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9)
    assert all(one.grad is None for one in teacher.model.parameters())


def test_pieces_of_a_micro_batch_add_up_to_it() -> None:
    student, teacher, batch = llama(seed=1), llama(seed=2), packed_batch()
    objective = Objective(student, ModelTeacher(teacher, Says()), Divergence(), Weights(0.5), chunk_tokens=5)
    whole = gradients(objective.loss(student.model, wanted_of(batch), batch["targets"]), student)
    told = objective.parts(len(batch["targets"]))
    objective.begin_step()
    student.model.zero_grad()
    for piece in split(batch, 2):
        objective.loss(student.model, wanted_of(piece), piece["targets"]).backward()
    for name, parameter in student.model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-9, atol=1e-12)
    assert objective.parts(len(batch["targets"])) == pytest.approx(told, rel=1e-12)
    assert set(told) == {"labels", "teacher"}


def test_on_answers_of_its_own_only_the_teacher_counts() -> None:
    student, teacher, batch = llama(seed=1), llama(seed=2), packed_batch()
    objective = Objective(student, ModelTeacher(teacher, Says()), Divergence(), Weights(0.5), chunk_tokens=5)
    loss = objective.loss(student.model, wanted_of(batch), batch["targets"], own_answers=True)
    assert objective.parts(len(batch["targets"])) == {"teacher": pytest.approx(loss.item() / len(batch["targets"]))}
    torch.testing.assert_close(loss, by_hand(student, teacher, batch, Weights(0.0)), rtol=1e-9, atol=0)


class Silent(ModelTeacher):
    """Says nothing but hidden states."""

    def logits_of(self, hidden: Tensor) -> Tensor:
        raise AssertionError("its logits were asked for")


def test_with_all_the_weight_on_labels_no_logit_of_the_teacher_is_computed() -> None:
    student, other, batch = llama(seed=1), llama(seed=2), packed_batch()
    teacher, weights = Silent(other, Says(), ear=LayerEar(other.model, (1,))), Weights(1.0, 0.7)
    objective = Objective(student, teacher, Divergence(), weights, LayerEar(student.model, (1,)), chunk_tokens=5)
    loss = objective.loss(student.model, wanted_of(batch), batch["targets"])
    torch.testing.assert_close(loss, by_hand(student, other, batch, weights), rtol=1e-9, atol=0)
    loss.backward()
    assert set(objective.parts(len(batch["targets"]))) == {"labels", "hidden"}


def test_a_micro_batch_without_trained_tokens_is_no_loss_and_no_failure() -> None:
    student, teacher, batch = llama(seed=1), llama(seed=2), packed_batch()
    batch["positions"] = batch["targets"] = torch.zeros(0, dtype=torch.long)
    objective = Objective(student, ModelTeacher(teacher, Says()), Divergence(), Weights(0.5))
    loss = objective.loss(student.model, wanted_of(batch), batch["targets"])
    loss.backward()
    assert loss == 0


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(EngineError) as refused:
        compared_layers((2, 9), 4, 8)
    assert refused.value.code == "distill.no_such_layer"
    assert "from 1 to 4" in refused.value.what
    assert compared_layers((), 4, 8) == ((4,), (8,))
    assert compared_layers((1, 3), 12, 4) == ((1, 3), (1, 1))


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────
class OneLayer(nn.Module):
    """As little model as there can be, so that logits are all there is to see."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        from transformers import LlamaConfig

        self.config = LlamaConfig(vocab_size=words, hidden_size=width, num_hidden_layers=1, num_attention_heads=1)
        self.embedding = nn.Embedding(words, width)
        self.head = nn.Linear(width, words, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutput

        return CausalLMOutput(logits=self.head(self.embedding(input_ids)))


def peak_beside_weights(words: int, tokens: int, folder: Path) -> int:
    """The most bytes alive in forward and backward, above what was there before."""

    def build() -> Any:
        torch.manual_seed(0)
        models = [OneLayer(words, 8) for _ in range(2)]
        student, teacher = (
            LoadedModel(one, SelectiveHead(one), None, "cpu", torch.float32)  # type: ignore[arg-type]
            for one in models
        )
        for one in student.model.parameters():
            one.grad = torch.zeros_like(one)
        objective = Objective(
            student, ModelTeacher(teacher, Says()), Divergence(DistillLoss.JSD), Weights(0.5), chunk_tokens=16
        )
        ids = torch.randint(0, words, (1, tokens))
        return objective, Wanted(ids, torch.arange(tokens)[None], torch.arange(tokens)), ids[0]

    def step(built: Any) -> None:
        objective, wanted, targets = built
        objective.loss(objective.student.model, wanted, targets).backward()

    live = watch(build, step, folder)
    return live.peak - live.at_start


def test_what_is_alive_grows_with_the_chunk_and_not_with_vocabulary_times_tokens(tmp_path: Path) -> None:
    words = 8192
    short, long = (peak_beside_weights(words, tokens, tmp_path) for tokens in (32, 512))
    one_chunk = 16 * words * 4
    assert short < 16 * one_chunk
    per_token = (long - short) / (512 - 32)
    assert per_token < words * 4 / 20, "a twentieth of one float32 row of logits, where 512 x V would keep ten of them"
