"""A chat's answers: those of transformers, those of an adapter alone, and the base's own, from one base in memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from engine.chat.__main__ import Requests
from engine.chat.answering import Asked, Outcome, answer
from engine.chat.service import ChatService, prompt_of
from engine.chat.sides import Side, Sides
from engine.chat.unfolding import Unfolding
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.jobs.chat_lines import (
    AllAnswered,
    Answered,
    Ask,
    Failed,
    News,
    Open,
    Piece,
    Ready,
    Sampling,
    Sent,
    Show,
    SideOrder,
    SideReady,
    SideRefused,
    Turn,
    decode_news,
    encode,
)
from engine.models.folder import TOKENIZER_FILES
from engine.models.headers import read_headers
from engine.train.environment import Device
from tests.train.spawn import worker_environment

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chat")]

CPU = Device("cpu", "a processor", torch.float32)
GREEDY = Sampling(temperature=0, max_new_tokens=12)
ASKED = (Turn("user", "Say heron number 7"),)
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "saved": {"modules_to_save": ["lm_head"]},
    "bias": {"bias": "lora_only", "target_modules": ["q_proj"]},
    "pissa": {"init_lora_weights": "pissa"},
}
"""Adapters that go onto a base in different ways. "head" and "saved" cannot be on one model of peft's; the last two
change the base as they are loaded."""


@pytest.fixture(scope="session")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of every kind, far enough from doing nothing that answers differ."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    place = tmp_path_factory.mktemp("chat-adapters")
    for seed, (name, options) in enumerate(KINDS.items()):
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        torch.manual_seed(seed)
        usual = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        model = get_peft_model(base, LoraConfig(**(usual | options)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and name != "pissa":
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
                elif parameter.requires_grad:
                    parameter.mul_(1.5)
        model.save_pretrained(str(place / name))
    return {name: place / name for name in KINDS}


def order(folder: Path, base: Path | None = None, **options: Any) -> SideOrder:
    return SideOrder(name=folder.name, folder=str(folder), base=str(base) if base else "", **options)


def logits_of(side: Side) -> torch.Tensor:
    """(T, V) of the question that the tests ask."""
    _, ids = prompt_of(side, ASKED)
    row = torch.tensor([ids])
    places = torch.arange(len(ids))
    with side.opened() as model:
        return model.logits_at(row, places[None], places)


def plain_greedy(folder: Path, side: Side, tokens: int) -> list[int]:
    """What transformers' own generate gives."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    _, ids = prompt_of(side, ASKED)
    row = torch.tensor([ids])
    output = model.generate(
        row, attention_mask=torch.ones_like(row), max_new_tokens=tokens, do_sample=False, eos_token_id=2, pad_token_id=0
    )
    return [int(token) for token in output[0, len(ids) :]]


def tokens_of(side: Side, sampling: Sampling, **changes: Any) -> tuple[list[int], Outcome]:
    _, ids = prompt_of(side, ASKED)
    asked = replace(Asked(ids, sampling, frozenset({2}), 128), **changes)
    outcome = Outcome()
    with side.opened() as model:
        return list(answer(model, asked, lambda: False, outcome)), outcome


def test_a_greedy_answer_is_that_of_transformers_generate(tiny_model: Path) -> None:
    side = Sides(CPU).add(0, order(tiny_model))
    expected = plain_greedy(tiny_model, side, 24)
    found, outcome = tokens_of(side, replace_tokens(GREEDY, 24))
    assert found == [token for token in expected if token != 2]
    assert outcome.ended == ("end" if expected[-1] == 2 else "length")


def replace_tokens(sampling: Sampling, tokens: int) -> Sampling:
    import msgspec

    return msgspec.structs.replace(sampling, max_new_tokens=tokens)


def test_an_answer_after_a_long_prompt_read_in_pieces_is_the_same(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = Sides(CPU).add(0, order(tiny_model))
    whole, _ = tokens_of(side, GREEDY)
    monkeypatch.setattr("engine.chat.answering.PREFILL_TOKENS", 5)
    assert tokens_of(side, GREEDY)[0] == whole


def test_a_seed_gives_the_same_answer_again_and_another_one_another(tiny_model: Path) -> None:
    side = Sides(CPU).add(0, order(tiny_model))
    warm = Sampling(seed=3, temperature=1.5, top_p=1.0, max_new_tokens=16)
    first, _ = tokens_of(side, warm)
    torch.manual_seed(99)  # the answer has a generator of its own
    assert tokens_of(side, warm)[0] == first
    assert tokens_of(side, Sampling(seed=4, temperature=1.5, top_p=1.0, max_new_tokens=16))[0] != first


def test_adapters_swapped_under_one_base_compute_what_each_does_alone(
    tiny_model: Path, adapters: dict[str, Path]
) -> None:
    alone = {name: logits_of(Sides(CPU).add(0, order(folder, tiny_model))) for name, folder in adapters.items()}
    base_alone = logits_of(Sides(CPU).add(0, order(tiny_model)))
    sides = Sides(CPU)
    base = sides.add(0, order(tiny_model))
    together = {
        name: sides.add(number, order(folder, tiny_model)) for number, (name, folder) in enumerate(adapters.items(), 1)
    }
    for _ in range(2):  # and back again
        assert torch.equal(logits_of(base), base_alone)
        for name, side in together.items():
            assert torch.equal(logits_of(side), alone[name]), name
            assert not torch.allclose(alone[name], base_alone), name
    shared = {name for name, side in together.items() if side.slot is base.slot}
    assert shared == {"lora", "dora", "head"}
    assert all("copy of its own" in together[name].notes[0] for name in ("saved", "bias", "pissa"))


def test_an_adapter_computes_what_peft_computes(tiny_model: Path, adapters: dict[str, Path]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    sides = Sides(CPU)
    sides.add(0, order(adapters["dora"], tiny_model))
    for name in ("lora", "bias"):
        side = sides.add(1, order(adapters[name], tiny_model))
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, str(adapters[name])).eval()
        with torch.no_grad():
            expected = model(torch.tensor([prompt_of(side, ASKED)[1]])).logits[0]
        assert torch.allclose(logits_of(side), expected, atol=1e-5)


def test_a_four_bit_base_is_loaded_once_for_all_its_adapters(tiny_model: Path, adapters: dict[str, Path]) -> None:
    sides = Sides(CPU)
    base = sides.add(0, order(tiny_model, quantization="nf4"))
    tuned = sides.add(1, order(adapters["lora"], tiny_model, quantization="nf4"))
    plain = sides.add(2, order(adapters["lora"], tiny_model))
    assert base.slot is tuned.slot
    assert plain.slot is not tuned.slot
    assert sides.weights_words(tuned) == "nf4, computing in float32"
    assert not torch.allclose(logits_of(plain), logits_of(tuned))


@pytest.fixture(scope="session")
def packed_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model saved in 4 bits, as bases are published for QLoRA."""
    import shutil

    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    packed = AutoModelForCausalLM.from_pretrained(
        tiny_model, dtype=torch.float32, quantization_config=settings, device_map="cpu"
    )
    folder = tmp_path_factory.mktemp("packed") / "tiny-bnb-4bit"
    packed.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tiny_model / name).is_file():
            shutil.copyfile(tiny_model / name, folder / name)
    return folder


def test_an_adapter_answers_on_a_base_that_is_stored_in_four_bits(
    tiny_model: Path, packed_model: Path, adapters: dict[str, Path]
) -> None:
    sides = Sides(CPU)
    for name in ("lora", "dora"):
        stored = sides.add(1, order(adapters[name], packed_model))
        packed_now = sides.add(2, order(adapters[name], tiny_model, quantization="nf4"))
        assert torch.allclose(logits_of(stored), logits_of(packed_now), atol=1e-4)
    assert not torch.allclose(logits_of(stored), logits_of(sides.add(3, order(packed_model))))


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_an_adapter_of_another_base_is_refused_and_the_base_leaves_memory(
    adapters: dict[str, Path], tmp_path: Path, tiny_model: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_model, hidden_size=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / name).write_bytes((tiny_model / name).read_bytes())
    sides = Sides(CPU)
    with pytest.raises(EngineError) as refused:
        sides.add(0, order(adapters["lora"], tmp_path / "other"))
    assert refused.value.code == "adapter.other_base"
    assert not sides.sides


def test_a_second_model_that_does_not_fit_is_refused_in_words_and_the_first_answers(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").symlink_to(tiny_model)
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    heard = Heard()
    service = ChatService(CPU, heard, lambda: False)
    memory = iter([10**9, 10**9, 10**4, 10**4])
    monkeypatch.setattr("engine.evaluation.loading.free_bytes", lambda device: next(memory, 10**4))
    service.open(Open(sides=(order(tiny_model), order(other), order(tmp_path / "copy"))))
    (refused,) = heard.of(SideRefused)
    assert refused.side == 1
    assert refused.problem.code == "chat.no_room"
    assert "beside the model that is loaded" in refused.problem.what
    assert {ready.side: ready.facts.shares for ready in heard.of(SideReady)} == {0: True, 2: True}
    service.ask(Ask(ask=1, turns=(ASKED, ASKED, ()), sampling=GREEDY))
    assert [done.side for done in heard.of(Answered)] == [0]


def test_where_float32_does_not_fit_half_of_it_is_taken_and_said(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = sum(tensor.elements for tensor in read_headers(tiny_model).tensors)
    monkeypatch.setattr("engine.evaluation.loading.free_bytes", lambda device: 3 * numbers)
    heard = Heard()
    ChatService(CPU, heard, lambda: False).open(Open(sides=(order(tiny_model),)))
    (ready,) = heard.of(SideReady)
    assert ready.facts.weights == "bfloat16"
    assert "the usual type is float32" in ready.facts.notes[0]


# ── the service ──────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Heard:
    """Everything that was told."""

    lines: list[News] = field(default_factory=list)

    def __call__(self, news: News) -> None:
        self.lines.append(news)

    def of(self, kind: type) -> list[Any]:
        return [line for line in self.lines if isinstance(line, kind)]


@pytest.fixture
def opened(tiny_model: Path) -> Callable[..., tuple[ChatService, Heard]]:
    def make(stopped: Callable[[], bool] = lambda: False, folder: Path = tiny_model) -> tuple[ChatService, Heard]:
        heard = Heard()
        service = ChatService(CPU, heard, stopped)
        service.open(Open(sides=(order(folder),)))
        return service, heard

    return make


def test_the_text_that_was_sent_is_the_template_of_transformers(
    opened: Callable[..., tuple[ChatService, Heard]], tiny_model: Path
) -> None:
    from transformers import AutoTokenizer

    service, heard = opened()
    turns = (Turn("system", "Be brief."), *ASKED, Turn("assistant", "HERON"), Turn("user", "Again"))
    service.show(Show(ask=1, turns=(turns,)))
    (sent,) = heard.of(Sent)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    chat = [{"role": turn.role, "content": turn.content} for turn in turns]
    assert sent.text == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert sent.tokens == len(ids)
    assert set(sent.special) == {"<|im_start|>", "<|im_end|>"}


def test_pieces_add_up_to_the_answer_and_the_text_sent_comes_first(
    opened: Callable[..., tuple[ChatService, Heard]],
) -> None:
    service, heard = opened()
    service.ask(Ask(ask=4, turns=(ASKED,), sampling=GREEDY))
    (done,) = heard.of(Answered)
    assert done.text.startswith("".join(piece.text for piece in heard.of(Piece)))
    assert done.prompt_tokens == heard.of(Sent)[0].tokens
    kinds = [type(line) for line in heard.lines]
    assert kinds.index(Sent) < kinds.index(Answered) < kinds.index(AllAnswered)


def test_a_stop_between_tokens_keeps_what_there_is(opened: Callable[..., tuple[ChatService, Heard]]) -> None:
    looks = iter([False] * 8)
    service, heard = opened(lambda: next(looks, True))
    service.ask(Ask(ask=1, turns=(ASKED,), sampling=replace_tokens(GREEDY, 60)))
    (done,) = heard.of(Answered)
    assert done.ended == "stopped"
    assert 0 < done.tokens < 8


def test_an_answer_ends_with_the_window_and_a_full_window_is_said_in_words(
    opened: Callable[..., tuple[ChatService, Heard]],
) -> None:
    service, heard = opened()
    hot = Sampling(seed=1, temperature=50, top_p=1, max_new_tokens=500)
    service.ask(Ask(ask=1, turns=((Turn("user", "heron " * 20),),), sampling=hot))
    (done,) = heard.of(Answered)
    assert done.ended in ("window", "end")
    assert done.prompt_tokens + done.tokens <= 128
    service.ask(Ask(ask=2, turns=((Turn("user", "heron " * 200),),), sampling=hot))
    (failed,) = heard.of(Failed)
    assert [sent.ask for sent in heard.of(Sent)] == [1]  # what is refused was not sent
    assert failed.problem.code == "chat.window"
    assert "of 128" in failed.problem.what
    assert "Clear" in failed.problem.next_step


def test_without_a_chat_template_the_default_is_used_and_said(
    opened: Callable[..., tuple[ChatService, Heard]], tiny_model: Path, tmp_path: Path
) -> None:
    for file in tiny_model.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).symlink_to(file)
    service, heard = opened(folder=tmp_path)
    (ready,) = heard.of(SideReady)
    assert ready.facts.template_is_default
    assert "no chat template in its folder" in ready.facts.notes[0]
    service.show(Show(ask=1, turns=(ASKED,)))
    assert "### User:\nSay heron number 7" in heard.of(Sent)[0].text


def test_a_template_that_refuses_a_system_text_says_what_to_leave_out(
    opened: Callable[..., tuple[ChatService, Heard]], tiny_model: Path, tmp_path: Path
) -> None:
    for file in tiny_model.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).symlink_to(file)
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}hello"
    (tmp_path / "chat_template.jinja").write_text(refusing)
    service, heard = opened(folder=tmp_path)
    service.ask(Ask(ask=1, turns=((Turn("system", "Be brief."), *ASKED),), sampling=GREEDY))
    (failed,) = heard.of(Failed)
    assert failed.problem.cause == "no system role"
    assert "system text" in failed.problem.next_step


def test_a_tokenizer_with_tokens_that_the_model_lacks_is_refused_before_the_model_fails(
    opened: Callable[..., tuple[ChatService, Heard]], tiny_model: Path, tmp_path: Path
) -> None:
    for file in tiny_model.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).symlink_to(file)
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    tokenizer.add_tokens([f"heron{number}" for number in range(40)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    service, heard = opened(folder=tmp_path)
    service.ask(Ask(ask=1, turns=((Turn("user", "heron39"),),), sampling=GREEDY))
    (failed,) = heard.of(Failed)
    assert failed.problem.code == "chat.vocabulary"
    service.ask(Ask(ask=2, turns=(ASKED,), sampling=GREEDY))
    assert heard.of(Answered)


def test_a_failure_in_a_models_code_is_that_sides_own(
    tiny_model: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    service = ChatService(CPU, heard, lambda: False)
    service.open(Open(sides=(order(tiny_model), order(adapters["lora"], tiny_model))))
    fine = Unfolding.add

    def fails_once(self: Unfolding, token: int) -> str:
        monkeypatch.setattr(Unfolding, "add", fine)
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Unfolding, "add", fails_once)
    service.ask(Ask(ask=1, turns=(ASKED, ASKED), sampling=GREEDY))
    assert heard.of(Failed)[0].problem.cause == "RuntimeError: shapes do not match"
    assert [done.side for done in heard.of(Answered)] == [1]


def test_a_character_spread_over_tokens_appears_whole_and_nothing_is_lost(tiny_model: Path) -> None:
    tokenizer = ChatTokenizer.load(tiny_model)
    text = "Grüße, 世界 🙂 and  more"
    ids = tokenizer.encode(text)
    unfolding = Unfolding(tokenizer)
    pieces = [unfolding.add(token) for token in ids]
    assert "".join(pieces) == unfolding.text == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert len(ids) > len(text)  # several tokens a character, or this tests nothing


def test_when_nobody_can_ask_any_more_answers_under_way_end() -> None:
    requests = Requests(io.BytesIO(encode(Ask(ask=1, turns=(ASKED,)))))
    requests.start()
    assert isinstance(requests.next(), Ask)
    assert requests.next() is None
    assert requests.stopped()
    requests.done()
    assert requests.stopped()


# ── the process ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_process_answers_what_is_piped_in_and_prints_nothing_else(
    tiny_model: Path, adapters: dict[str, Path]
) -> None:
    sides = (order(tiny_model), order(adapters["lora"], tiny_model), order(adapters["lora"], Path("/nowhere")))
    lines = [Open(sides=sides, threads=1), Ask(ask=1, turns=(ASKED, ASKED, ASKED), sampling=GREEDY)]
    done = subprocess.run(
        [sys.executable, "-m", "engine.chat"],
        input=b"".join(encode(line) for line in lines) + b'{"kind": "what"}\n',
        env=worker_environment(), capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    *news, last = done.stdout.splitlines()
    assert json.loads(last)["error"]["code"] == "chat.line"
    assert done.returncode == 2
    found = [decode_news(line) for line in news]
    assert None not in found
    assert [line.side for line in found if isinstance(line, SideRefused)] == [2]
    assert [line.side for line in found if isinstance(line, Answered)] == [0, 1]
    assert sum(isinstance(line, Ready) for line in found) == 1
    assert isinstance(found[-1], AllAnswered)
