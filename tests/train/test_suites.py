"""Perplexity suites: bits per byte as defined, comparable between tokenizers, per document; where texts come from."""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.evaluation.findings import SuiteText
from engine.evaluation.suite_text import cut_documents, digest, read_suite
from engine.resources import demo_model_dir

pytestmark = pytest.mark.slow

PIECES = {
    "letters": {"a": 0, "b": 1},
    "pairs": {"aa": 0, "ab": 1, "ba": 2, "bb": 3},
}


def tokenizer_of(folder: Path, vocabulary: dict[str, int]) -> ChatTokenizer:
    """Cuts text of the letters a and b into pieces of the vocabulary's length."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    length = len(next(iter(vocabulary)))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f".{{{length}}}"), behavior="isolated")
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    return ChatTokenizer.load(folder)


def model_of(tokenizer: ChatTokenizer, vocab: int, *, uniform: bool, window: int = 64) -> Any:
    """A small Llama; `uniform` gives every token the same probability."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from engine.evaluation.head import SelectiveHead
    from engine.evaluation.model import LoadedModel

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=window,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20 if parameter.dim() == 2 else 1)
        if uniform:
            model.lm_head.weight.zero_()
    model.eval()
    return LoadedModel(model, SelectiveHead(model), tokenizer, "cpu", torch.float32)


def letters(count: int, *, seed: int = 0) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice("ab") for _ in range(count))


def test_two_tokenizers_that_know_the_same_have_the_same_bits_per_byte(tmp_path: Path) -> None:
    """Letters at 1/2 each and pairs at 1/4 each are one and the same distribution of text: 1 bit per byte."""
    from engine.evaluation.suites import measure_suite

    text = SuiteText("ab", tuple(letters(40, seed=number) for number in range(5)))
    found = {}
    for name, vocabulary in PIECES.items():
        tokenizer = tokenizer_of(tmp_path / name, vocabulary)
        found[name] = measure_suite(model_of(tokenizer, len(vocabulary), uniform=True), text)
    assert found["letters"].bits_per_byte == pytest.approx(1.0, abs=1e-6)
    assert found["pairs"].bits_per_byte == pytest.approx(1.0, abs=1e-6)
    assert found["letters"].nats_per_token == pytest.approx(math.log(2), abs=1e-6)
    assert found["pairs"].nats_per_token == pytest.approx(math.log(4), abs=1e-6), (
        "and per token they are not comparable"
    )
    assert found["letters"].text_bytes == found["pairs"].text_bytes == (40,) * 5


def test_sums_are_those_of_every_token_given_all_before_it(tmp_path: Path) -> None:
    import torch

    from engine.evaluation.suites import measure_suite

    tokenizer = tokenizer_of(tmp_path / "t", PIECES["pairs"])
    model = model_of(tokenizer, 4, uniform=False)
    texts = (letters(30), letters(2, seed=1), letters(50, seed=2))
    found = measure_suite(model, SuiteText("ab", texts))
    for text, nats, tokens in zip(texts, found.nats, found.tokens, strict=True):
        ids = [0, *tokenizer.encode(text)]  # token 0 where a tokenizer names no beginning and no end
        with torch.no_grad():
            known = model.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = -sum(float(known[place, number]) for place, number in enumerate(ids[1:]))
        assert nats == pytest.approx(expected, rel=1e-5)
        assert tokens == len(ids) - 1


def test_a_document_longer_than_the_window_has_each_token_scored_once(tmp_path: Path) -> None:
    import torch

    from engine.evaluation.suites import measure_suite

    tokenizer = tokenizer_of(tmp_path / "t", PIECES["letters"])
    window = 16
    model = model_of(tokenizer, 2, uniform=False, window=window)
    text = letters(50)
    found = measure_suite(model, SuiteText("ab", (text,)))
    ids = [0, *tokenizer.encode(text)]
    expected, begin = 0.0, 0
    while begin < len(ids) - 1:
        row = ids[begin : begin + window]
        with torch.no_grad():
            known = model.model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1)
        expected -= sum(float(known[place, number]) for place, number in enumerate(row[1:]))
        begin += window - 1
    assert found.tokens == (50,)
    assert found.nats[0] == pytest.approx(expected, rel=1e-5)


def test_bits_per_byte_are_those_of_lm_eval(tmp_path: Path) -> None:
    """lm-eval's loglikelihood_rolling on the same model and text, with characters of several bytes in it."""
    from engine.evaluation.benchmarks import _wrapped
    from engine.evaluation.loading import loaded
    from engine.evaluation.suites import measure_suite

    instance = pytest.importorskip("lm_eval.api.instance")
    texts = ("The river of Askel is Vash.", "Grüße aus Wöllstein: 3 € — “gut”.", "a")
    with loaded(demo_model_dir()) as model:
        found = measure_suite(model, SuiteText("x", texts))
        asked = [instance.Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(texts)]
        theirs = _wrapped(model, demo_model_dir()).loglikelihood_rolling(asked, disable_tqdm=True)
    assert found.nats == pytest.approx([-value for value in theirs], rel=1e-4)
    assert found.text_bytes == tuple(len(text.encode()) for text in texts)
    bits = -sum(theirs) / math.log(2) / sum(len(text.encode()) for text in texts)
    assert found.bits_per_byte == pytest.approx(bits, rel=1e-4)


def test_a_text_that_begins_with_the_start_token_is_not_given_another() -> None:
    from engine.evaluation.suites import _rows_of

    tokenizer = ChatTokenizer.load(demo_model_dir())
    model = model_of(tokenizer, 1216, uniform=True, window=256)
    chat, plain = (_rows_of(model, text) for text in ("<|im_start|>user\nHello<|im_end|>", "Hello"))
    start = tokenizer.bos_id
    assert [row.input_ids.count(start) for row in (chat.rows[0], plain.rows[0])] == [1, 1]
    assert chat.text_bytes == len("user\nHello<|im_end|>")
    assert plain.text_bytes == len("Hello")


def test_measuring_leaves_mode_and_random_states_alone(tmp_path: Path) -> None:
    import torch

    from engine.evaluation.suites import measure_suite

    model = model_of(tokenizer_of(tmp_path / "t", PIECES["letters"]), 2, uniform=False)
    model.model.train()
    state = torch.get_rng_state()
    measure_suite(model, SuiteText("ab", (letters(30),)))
    assert model.model.training
    assert torch.equal(state, torch.get_rng_state())


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_pieces_fit_the_window_and_are_the_text(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.load(demo_model_dir())
    draw = random.Random(5)
    text = " ".join(draw.choice(["river", "Askel", "glass", "quiet\n", "é€"]) for _ in range(900))
    pieces = cut_documents([text, "short"], tokenizer, 64, 100_000)
    assert "".join(pieces) == text + "short"
    assert all(len(tokenizer.encode(piece)) < 64 for piece in pieces)
    assert len(pieces) > 10


def test_only_so_many_tokens_are_taken(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.load(demo_model_dir())
    pieces = cut_documents(["The river of Askel is Vash. " * 8] * 50, tokenizer, 256, 300)
    assert 250 <= sum(len(tokenizer.encode(piece)) for piece in pieces) <= 310


def test_folders_of_plain_rows_and_packed_files_are_read(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.load(demo_model_dir())
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n")
    (tmp_path / "b.jsonl").write_text('{"body": "Three."}\n{"messages": [{"role": "user", "content": "Four."}]}\n')
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps({"body": "Five."}) + "\n")
    found = read_suite("mine", str(tmp_path), "body", tokenizer, 256, 1000)
    assert found.documents == ("One.", "Two.", "Three.", "<|im_start|>user\nFour.<|im_end|>\n", "Five.")
    assert digest(found) != digest(SuiteText("mine", found.documents[:-1]))


def test_text_that_ships_has_an_item_per_sentence() -> None:
    found = read_suite("general", "general", "text", ChatTokenizer.load(demo_model_dir()), 256, 100_000)
    assert len(found.documents) > 20


def test_a_suite_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text('{"number": 3}\n')
    with pytest.raises(EngineError, match="no text") as refused:
        read_suite("mine", str(tmp_path / "empty.jsonl"), "text", ChatTokenizer.load(demo_model_dir()), 256, 1000)
    assert refused.value.code == "suite.no_text"


def test_the_command_names_what_it_does_and_not_another_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from scaler_tui.cli import main

    text = tmp_path / "prose.txt"
    text.write_text("the dunes move when the wind does.\n")
    assert main(["eval", "demo", "--suite", str(text)]) == 0
    told = capsys.readouterr()
    assert "prose" in told.out
    assert "measuring" in told.err
    assert "measuring lengths" not in told.err
