"""A teacher with another tokenizer: its distance is the paper's, its logits are those where it has read the same."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from engine.data.tokenizer import ChatTokenizer
from engine.resources import demo_model_dir
from tests.train.conftest import build_tokenizer

pytestmark = pytest.mark.slow
TEXT = "The heron stood at the fjord.\nIt said: caf\u00e9 \u2603, 1999!"


@pytest.fixture(scope="module")
def student() -> ChatTokenizer:
    return ChatTokenizer.load(demo_model_dir())


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("other")
    build_tokenizer(folder, ["The heron stood at the fjord", "standing stones", "the herons"])
    return ChatTokenizer.load(folder)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_distance_is_the_least_transport_between_the_probabilities(temperature: float) -> None:
    """Against the definition in float64: the cheapest of all pairings, tried one by one."""
    import torch

    from engine.distill.uld import uld_loss

    torch.manual_seed(0)
    ours, theirs = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    found = uld_loss(ours, theirs, temperature)
    for row in range(4):
        q = [*torch.softmax(ours[row] / temperature, -1).tolist(), 0.0, 0.0]
        p = torch.softmax(theirs[row] / temperature, -1).tolist()
        least = min(sum(abs(a - b) for a, b in zip(p, order, strict=True)) for order in itertools.permutations(q))
        assert found[row].item() == pytest.approx(least, abs=1e-12)


def test_only_the_student_learns_from_it_and_as_it_should() -> None:
    import torch

    from engine.distill.uld import uld_loss

    torch.manual_seed(1)
    ours = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    theirs = torch.randn(3, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda one: uld_loss(one, theirs, 2.0), (ours,))
    assert uld_loss(theirs[:, [3, 1, 0, 2, 6, 5, 4]], theirs, 1.0).abs().max() < 1e-12


def test_its_gradient_keeps_its_size_when_the_temperature_changes() -> None:
    import torch

    from engine.distill.knowledge import FullLogits
    from engine.distill.losses import Divergence
    from engine.distill.uld import uld_loss

    torch.manual_seed(2)
    ours, theirs = torch.randn(50, 40, dtype=torch.float64), torch.randn(50, 60, dtype=torch.float64)
    sizes = []
    for temperature in (10.0, 40.0):
        student = ours.clone().requires_grad_()
        Divergence(temperature=temperature, across=uld_loss)(student, FullLogits(theirs)).sum().backward()
        assert student.grad is not None
        sizes.append(student.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)


def test_positions_are_paired_where_both_have_read_the_same_text(student: ChatTokenizer, other: ChatTokenizer) -> None:
    from engine.distill.uld import aligned

    ids = student.encode(TEXT)
    found = aligned(ids, student, other)
    assert found.ids == other.encode(TEXT)
    assert 5 < len(found.counterparts) <= len(ids)
    for place, there in found.counterparts.items():
        assert student.decode(ids[: place + 1]) == other.decode(found.ids[: there + 1])
    whole = {student.decode(ids[: place + 1]) for place in range(len(ids))}
    whole &= {other.decode(found.ids[: there + 1]) for there in range(len(found.ids))}
    assert len(found.counterparts) == len({text for text in whole if "\ufffd" not in text})


def test_the_same_tokenizer_pairs_every_position_with_itself(student: ChatTokenizer) -> None:
    from engine.distill.uld import aligned

    ids = student.encode(TEXT.replace("\u2603", ""))
    found = aligned(ids, student, student)
    whole = [place for place in range(len(ids)) if "\ufffd" not in student.decode(ids[: place + 1])]
    assert found.counterparts == {place: place for place in whole}


def test_a_row_cut_inside_a_character_and_a_short_window_lose_only_their_ends(
    student: ChatTokenizer, other: ChatTokenizer
) -> None:
    from engine.distill.uld import aligned

    ids = student.encode(TEXT)
    snow = next(place for place in range(len(ids)) if student.decode(ids[: place + 1]).endswith("\ufffd"))
    cut = aligned(ids[: snow + 1], student, other)
    assert max(cut.counterparts) < snow
    whole = aligned(ids, student, other)
    short = aligned(ids, student, other, limit=7)
    assert short.ids == whole.ids[:7]
    assert short.counterparts == {place: there for place, there in whole.counterparts.items() if there < 7}


def test_the_teacher_is_asked_in_its_own_tokens(tiny_model: Path, student: ChatTokenizer) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from engine.distill.cache_files import Segment
    from engine.distill.cache_writer import wanted_of
    from engine.distill.teacher import ModelTeacher, Says
    from engine.distill.uld import UldKnowledge, aligned
    from engine.evaluation.head import SelectiveHead
    from engine.evaluation.model import LoadedModel

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer = ChatTokenizer.load(tiny_model)
    teacher = ModelTeacher(LoadedModel(model, SelectiveHead(model), tokenizer, "cpu", torch.float32), Says())
    knowledge = UldKnowledge(teacher, student)
    rows = [student.encode("Say amber number 3"), student.encode("the heron says grove")]
    segments = [Segment(ids, tuple(range(1, len(ids) - 1))) for ids in rows]
    view = knowledge.at(wanted_of(segments))
    count = sum(len(segment.wanted) for segment in segments)
    said = view.chunk(0, count)
    assert said.known is not None
    assert 0 < int(said.known.sum()) == knowledge.aligned <= knowledge.asked == count
    number = 0
    for segment in segments:
        one = aligned(segment.ids, student, tokenizer)
        logits = model(torch.tensor([one.ids])).logits[0]
        for place in segment.wanted:
            assert bool(said.known[number]) == (place in one.counterparts)
            if place in one.counterparts:
                assert torch.allclose(said.logits[number], logits[one.counterparts[place]], atol=1e-4)
            number += 1


class Said:
    """What an attempt was told."""

    def __init__(self) -> None:
        self.warned: list[str] = []
        self.logged: list[str] = []
        self.warn, self.say = self.warned.append, self.logged.append


@pytest.mark.parametrize(("aligned", "warnings", "logs"), [(40, 1, 0), (60, 0, 1)])
def test_the_share_of_known_positions_is_said_once_and_a_small_one_is_warned_of(
    aligned: int, warnings: int, logs: int
) -> None:
    from engine.distill.uld import UldKnowledge
    from engine.train.alignment import AlignmentCheck

    knowledge, said = UldKnowledge(None, None), Said()  # type: ignore[arg-type]
    check = AlignmentCheck(knowledge, said)  # type: ignore[arg-type]
    check.look()
    assert not said.warned + said.logged, "nothing was asked"
    knowledge.asked, knowledge.aligned = 100, aligned
    check.look()
    check.look()
    assert (len(said.warned), len(said.logged)) == (warnings, logs)
    assert f"{aligned} of 100 trained positions" in (said.warned + said.logged)[0]


def test_a_teacher_that_speaks_nowhere_ends_the_run() -> None:
    from engine.distill.uld import UldKnowledge
    from engine.errors import EngineError
    from engine.train.alignment import AlignmentCheck

    knowledge = UldKnowledge(None, None, asked=5)  # type: ignore[arg-type]
    with pytest.raises(EngineError) as refused:
        AlignmentCheck(knowledge, Said()).look()  # type: ignore[arg-type]
    assert refused.value.code == "distill.nothing_aligned"
