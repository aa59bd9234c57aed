"""Claims about the embedded demo model, its data and the generator that wrote them."""

from __future__ import annotations

import itertools
import json
import re
import sys
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer

DEMO = Path(__file__).parents[2] / "assets" / "demo"
MODEL = DEMO / "model"
SAMPLES = 24

sys.path.insert(0, str(DEMO))

import text_generator as generator  # noqa: E402


@cache
def config() -> dict[str, object]:
    return json.loads((MODEL / "config.json").read_text())


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@cache
def header() -> dict[str, dict[str, object]]:
    """The safetensors header: tensor name -> dtype, shape."""
    with (MODEL / "model.safetensors").open("rb") as file:
        content = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    content.pop("__metadata__", None)
    return content


def rows(name: str) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in (DEMO / "finetune" / f"{name}.jsonl").read_text().splitlines()]


@cache
def scorer():
    """(model, encoder, evaluation module): torch is imported only by the tests that need it."""
    import evaluate_model
    from windows import ChatEncoder

    return evaluate_model.load_model(MODEL), ChatEncoder(MODEL), evaluate_model


@cache
def float32_model():
    """The same weights, computed as a CPU run computes them; bfloat16 takes five times as long without its units."""
    import copy

    return copy.deepcopy(scorer()[0]).float()


def test_architecture_is_a_small_grouped_query_llama_with_context_256() -> None:
    facts = config()
    assert facts["architectures"] == ["LlamaForCausalLM"]
    assert facts["num_hidden_layers"] >= 8
    assert facts["max_position_embeddings"] == 256
    assert facts["num_attention_heads"] > facts["num_key_value_heads"] > 1
    assert facts["hidden_size"] % 64 == 0
    assert facts["intermediate_size"] % 64 == 0


def test_weights_are_bf16_and_small() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 10_000_000
    assert {tensor["dtype"] for tensor in header().values()} == {"BF16"}
    element_count = sum((t["data_offsets"][1] - t["data_offsets"][0]) // 2 for t in header().values())
    assert 2_000_000 <= element_count <= 5_000_000


def test_vocabulary_matches_the_embedding() -> None:
    assert tokenizer().get_vocab_size() == config()["vocab_size"] == header()["model.embed_tokens.weight"]["shape"][0]


@pytest.mark.parametrize(
    "text", ["", " ", "a  b\n\n c\t", "Zażółć gęślą jaźń", "日本語 🦊\u200d🔥", "\x00\x7f\u202e", "1234 + 5"]
)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text).ids, skip_special_tokens=False) == text


def test_every_digit_is_its_own_token() -> None:
    assert [token for token in tokenizer().encode("12345").tokens] == list("12345")


def test_every_recall_word_is_one_token() -> None:
    words = (*generator.KEY_WORDS, *generator.CODE_WORDS)
    assert all(len(tokenizer().encode(" " + word).ids) == 1 for word in words)


def test_template_is_prefix_consistent_and_matches_the_training_windows() -> None:
    from transformers import AutoTokenizer

    templated = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    encoder = scorer()[1]
    for skill in generator.SKILLS:
        for chat in generator.chats(5, "train", skill, 8, encoder.length):
            messages = list(chat.messages)
            rendered = [
                templated.apply_chat_template(messages[:n], tokenize=False) for n in range(1, len(messages) + 1)
            ]
            assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(rendered))
            prompt = templated.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
            assert rendered[-1].startswith(prompt)
            assert rendered[-1][len(prompt) :] == chat.answer + "<|im_end|>\n"
            assert templated(rendered[-1]).input_ids == encoder.encode(chat).ids


def test_generator_is_a_function_of_the_seed() -> None:
    for skill in generator.SKILLS:
        first = list(generator.chats(3, "train", skill, 20))
        assert first == list(generator.chats(3, "train", skill, 20))
        assert first != list(generator.chats(4, "train", skill, 20))


@pytest.mark.parametrize("skill", generator.SKILLS)
def test_training_and_heldout_questions_are_disjoint(skill: str) -> None:
    def asked(split: generator.Split) -> set[object]:
        """What is held out: operands and operator, items, slots, the set of (key, code) pairs, or the question."""
        chats = generator.chats(9, split, skill, 3000 if skill != "recall" else 300)
        if skill == "copy":
            return {chat.answer for chat in chats}
        questions = [next(m["content"] for m in chat.messages if m["role"] == "user") for chat in chats]
        if skill == "recall":
            return {frozenset(re.findall(r"The key of (\w+) is (\w+)", question)) for question in questions}
        operands = re.compile(r"\d+ [+-] \d+")
        return {operands.search(question).group() if skill == "arithmetic" else question for question in questions}

    assert not asked("train") & asked("heldout")


@pytest.mark.parametrize("name", ["train", "heldout", "base_text"])
def test_finetuning_chats_are_well_formed_and_fit_the_window(name: str) -> None:
    for messages in rows(name):
        assert [m["role"] for m in messages if m["role"] != "system"] == ["user", "assistant"] * (len(messages) // 2)
        assert sum(len(tokenizer().encode(f"{m['role']}\n{m['content']}").ids) + 3 for m in messages) <= 256


LEDGER = re.compile(r"\[(?P<town>\w+)\] (?P<attribute>\w+) = (?P<value>\w+)")


def test_heldout_ledger_lines_were_never_trained() -> None:
    train, heldout = ({messages[-1]["content"] for messages in rows(name)} for name in ("train", "heldout"))
    assert len(rows("train")) >= 300
    assert 60 <= len(rows("heldout")) <= 100
    assert len(heldout) >= 30
    assert not train & heldout
    assert not {m[0]["content"] for m in rows("train")} & {m[0]["content"] for m in rows("heldout")}


def test_ledger_lines_agree_with_the_world() -> None:
    asked = [m for name in ("train", "heldout") for m in rows(name) if m[0]["content"].startswith("Ledger")]
    assert len(asked) > 400
    for messages in asked:
        line = LEDGER.fullmatch(messages[-1]["content"])
        assert line is not None
        assert generator.FACTS[line["town"], line["attribute"]] == line["value"]


def test_card_and_scores_cover_every_skill() -> None:
    scores = json.loads((MODEL / "scores.json").read_text())
    assert set(scores["skills"]) == set(generator.SKILLS)
    assert min(scores["recall_by_depth"]) >= 0.95
    for score in scores["skills"].values():
        assert score["exact_match"] > max(0.5, 2 * score["chance"])
    assert "Held-out scores" in (MODEL / "README.md").read_text()


@pytest.mark.parametrize("skill", generator.SKILLS)
def test_model_answers_heldout_questions(skill: str) -> None:
    model, encoder, evaluation = scorer()
    chats = generator.chats(77, "heldout", skill, SAMPLES, encoder.length)
    assert evaluation.score_chats(model, encoder, chats).exact_match >= 0.75


@pytest.mark.parametrize("bucket", range(8))
def test_model_recalls_a_key_at_every_depth_of_a_full_window(bucket: int) -> None:
    _, encoder, evaluation = scorer()
    chats = evaluation.full_window_recall_chats(encoder, 4, bucket, SAMPLES)
    assert all(230 <= len(encoder.encode(chat).ids) <= 256 for chat in chats)
    assert evaluation.score_chats(float32_model(), encoder, chats).exact_match >= 0.85


def test_base_model_never_answers_in_ledger_lines() -> None:
    model, encoder, evaluation = scorer()
    chats = [generator.Chat("ledger", tuple(messages), choices=12) for messages in rows("heldout")[:SAMPLES]]
    assert evaluation.score_chats(model, encoder, chats).exact_match <= 0.05


def test_base_model_answers_every_sample_prompt_but_those_to_be_learned() -> None:
    prompts = json.loads((DEMO / "prompts.json").read_text())["prompts"]
    assert 3 <= len(prompts) <= 4
    model, encoder, evaluation = scorer()
    for prompt in prompts:
        answer = {"role": "assistant", "content": prompt["expected"]}
        chat = generator.Chat("prompt", (*prompt["messages"], answer), choices=12)
        known_before = not prompt["messages"][0]["content"].startswith("Ledger")
        assert (evaluation.score_chats(model, encoder, [chat]).exact_match == 1) == known_before


def long_texts(name: str) -> list[str]:
    return [json.loads(line)["text"] for line in (DEMO / "long" / f"{name}.jsonl").read_text().splitlines()]


def test_long_documents_are_what_the_script_writes() -> None:
    import make_long_set
    from windows import ChatEncoder

    assert make_long_set.parts(ChatEncoder(MODEL)) == {name: long_texts(name) for name in ("train", "short", "heldout")}


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_long_documents_are_longer_than_four_windows(name: str) -> None:
    lengths = [len(encoding.ids) for encoding in tokenizer().encode_batch(long_texts(name))]
    assert min(lengths) >= 1100
    assert max(lengths) <= 1200


def test_short_documents_of_the_long_set_fit_the_old_window() -> None:
    assert max(len(encoding.ids) for encoding in tokenizer().encode_batch(long_texts("short"))) <= 255  # and an end


def test_long_documents_repeat_notes_from_every_distance() -> None:
    """Tokens between the last two mentions of the notes in the roll calls at the end."""
    distances = []
    for text in long_texts("heldout"):
        tokens = tokenizer().encode(text)
        last: dict[str, int] = {}
        for match in re.finditer(r"The key of (\w+) is", text):
            token = tokens.char_to_token(match.start())
            if match[1] in last and token > 1000:
                distances.append(token - last[match[1]])
            last[match[1]] = token
    shares = [sum(low <= distance < low + 250 for distance in distances) / len(distances) for low in (0, 250, 500, 750)]
    assert len(distances) > 200
    assert min(shares) > 0.05


def test_a_note_never_contradicts_an_earlier_one_of_its_document() -> None:
    for text in (*long_texts("train"), *long_texts("short"), *long_texts("heldout")):
        told = re.findall(r"The key of (\w+) is (\w+)", text)
        assert len(set(told)) == len({key for key, _ in told})


def test_long_documents_train_and_measure_without_files() -> None:
    from engine.data.load import prepare
    from engine.jobs.spec import DataSection

    section = DataSection(train="demo-long", heldout="demo-long", base_text="demo-long", max_length=1200)
    prepared = prepare(section, MODEL)
    assert [len(part) for part in (prepared.train, prepared.heldout, prepared.base_text)] == [200, 24, 24]
    assert all(len(row.input_ids) >= 1100 for row in prepared.train)
