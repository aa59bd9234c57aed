"""Templates and masks: the same ids as transformers, and exactly the answers trained, on five styles of template."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from engine.data.encoding import EncodeOptions, RowEncoder
from engine.data.rows import DropReason, EncodedRow, Message, Note, Problem, RowKind, SourceRow
from engine.data.tokenizer import ChatTokenizer
from engine.errors import EngineError
from engine.jobs.spec import TrainOn
from engine.resources import demo_model_dir

CORPUS = [
    "The quick brown fox says hello to the assistant and the user asks a question about the system.",
    "Grüße aus Köln 😀 こんにちは [INST] ### User: ### Assistant: model assistant user system think json 123",
    "  def f(x):\n\treturn x  # comment\n\n\n" * 3,
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}
{% set header = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' %}
{% set content = header + message['content'] | trim + '<|eot_id|>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
{{ content }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
MISTRAL = """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token}}
    {%- endif %}
{%- endfor %}"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
THINKING = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
        {%- if loop.index0 > ns.last %}
            {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + content + '<|im_end|>\\n' }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
TAGGED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endif %}{% if loop.index > 50 %}{% break %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA, "thinking": THINKING, "tagged": TAGGED
}  # fmt: skip
SPECIAL = [
    "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "<think>", "</think>",
]  # fmt: skip
CHAT = (
    Message("user", "Say hello to  the fox"),
    Message("assistant", "Hello fox 😀"),
    Message("user", "And in Köln?"),
    Message("assistant", "Grüße!\n\n- eins\n- zwei"),
)


def byte_level() -> Tokenizer:
    """As Llama 3 and Qwen: byte-level BPE whose post-processor trims offsets."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    start = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), start])
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """As Llama 2, Mistral and Gemma: spaces become a letter, bytes are the fallback."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", *fallback, *SPECIAL], show_progress=False, min_frequency=1
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(CORPUS, trainer)
    written = json.loads(tokenizer.to_str())
    written["added_tokens"] = [t for t in written["added_tokens"] if not t["content"].startswith("<0x")]
    written["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(written))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", start)]
    )
    return tokenizer


MAKERS = {"byte_level": byte_level, "sentencepiece_like": sentencepiece_like}


def write_model(folder: Path, tokenizer: Tokenizer, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    written = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<s>", "special": True},
        "eos_token": "</s>",
        "pad_token": "<pad>",
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(written), "utf-8")
    return folder


@pytest.fixture(scope="module", params=sorted(MAKERS))
def maker(request: pytest.FixtureRequest) -> Tokenizer:
    return MAKERS[request.param]()


@pytest.fixture
def chatml(tmp_path: Path) -> Path:
    return write_model(tmp_path / "chatml", byte_level(), chat_template=CHATML)


def encode(model: Path, messages: tuple[Message, ...], train_on: TrainOn = TrainOn.COMPLETIONS) -> EncodedRow | Problem:
    tokenizer = ChatTokenizer.load(model)
    encoder = RowEncoder(tokenizer, EncodeOptions(512, train_on, keep_prompts=True))
    (row,) = encoder.encode([SourceRow(1, RowKind.CHAT, messages)])
    return row


def trained_pieces(model: Path, row: EncodedRow) -> list[str]:
    """The decoded runs of trained tokens."""
    tokenizer = ChatTokenizer.load(model)
    runs: list[list[int]] = []
    for index, (token, trained) in enumerate(zip(row.input_ids, row.trained, strict=True)):
        if trained and (index == 0 or not row.trained[index - 1]):
            runs.append([])
        if trained:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


def bare(texts: list[str]) -> list[str]:
    """Without whitespace: decoding puts some beside control tokens."""
    return ["".join(text.split()) for text in texts]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_ids_are_those_of_transformers(
    tmp_path: Path, maker: Tokenizer, name: str, add_generation_prompt: bool
) -> None:
    from transformers import AutoTokenizer

    model = write_model(tmp_path / name, maker, chat_template=TEMPLATES[name])
    theirs = AutoTokenizer.from_pretrained(model)
    ours = ChatTokenizer.load(model)
    turns = CHAT[:3] if add_generation_prompt else CHAT
    expected = theirs.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in turns],
        add_generation_prompt=add_generation_prompt,
        tokenize=True,
        return_dict=False,
    )
    assert list(ours.chat_ids(turns, add_generation_prompt=add_generation_prompt)) == expected
    assert list(ours.text_ids("plain text")) == theirs("plain text").input_ids


def test_the_demo_tokenizer_gives_the_ids_of_transformers() -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(demo_model_dir())
    ours = ChatTokenizer.load(demo_model_dir())
    for length in range(1, len(CHAT) + 1):
        turns = [{"role": m.role, "content": m.content} for m in CHAT[:length]]
        expected = theirs.apply_chat_template(turns, tokenize=True, return_dict=False)
        assert list(ours.chat_ids(CHAT[:length])) == expected


def test_filters_and_functions_of_templates_render_as_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    template = (
        "{% set d = dict(a='<é>') %}{{ d | tojson }}{{ {'x': [1, 2]} | tojson(indent=2) }}"
        "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}\n"
        "    {% if true %}\n{{ m.content }}{{ unk_token }}|{{ eos_token }}\n    {% endif %}\n"
        "{% generation %}{% set inner = 'x' %}{{ inner }}{% endgeneration %}{{ inner }}{% endfor %}"
        "{{ strftime_now('%Y') | length }}{{ tools is none }}{{ documents is defined }}"
    )
    model = write_model(tmp_path / "m", byte_level(), chat_template=template)
    turns = [{"role": m.role, "content": m.content} for m in CHAT]
    expected = AutoTokenizer.from_pretrained(model).apply_chat_template(turns, tokenize=False)
    assert ChatTokenizer.load(model).render(CHAT) == expected


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("chatml", "Hello fox 😀<|im_end|>", "Grüße!\n\n- eins\n- zwei<|im_end|>"),
        ("llama3", "Hello fox 😀<|eot_id|>", "Grüße!\n\n- eins\n- zwei<|eot_id|>"),
        ("mistral", " Hello fox 😀</s>", " Grüße!\n\n- eins\n- zwei</s>"),
        ("gemma", "Hello fox 😀<end_of_turn>", "Grüße!\n\n- eins\n- zwei<end_of_turn>"),
        ("thinking", "Hello fox 😀<|im_end|>", "<think>\n\n</think>\n\nGrüße!\n\n- eins\n- zwei<|im_end|>"),
        ("tagged", "Hello fox 😀<|im_end|>", "Grüße!\n\n- eins\n- zwei<|im_end|>"),
    ],
)
def test_exactly_the_answers_and_their_end_tokens_are_trained(
    tmp_path: Path, maker: Tokenizer, name: str, first: str, last: str
) -> None:
    model = write_model(tmp_path / name, maker, chat_template=TEMPLATES[name])
    row = encode(model, CHAT)
    assert isinstance(row, EncodedRow)
    assert bare(trained_pieces(model, row)) == bare([first, last])
    only_last = encode(model, CHAT, TrainOn.LAST)
    assert isinstance(only_last, EncodedRow)
    assert bare(trained_pieces(model, only_last)) == bare([last])
    everything = encode(model, CHAT, TrainOn.ALL)
    assert isinstance(everything, EncodedRow)
    assert everything.trained == (False, *[True] * (len(everything.input_ids) - 1))


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_prompt_is_the_beginning_of_the_row_or_the_difference_is_noted(
    tmp_path: Path, maker: Tokenizer, name: str
) -> None:
    model = write_model(tmp_path / name, maker, chat_template=TEMPLATES[name])
    row = encode(model, CHAT)
    assert isinstance(row, EncodedRow)
    same = row.prompt_ids == row.input_ids[: len(row.prompt_ids)]
    assert same != (Note.PROMPT_DIFFERS in row.notes)
    assert same or name == "llama3", "only two line feeds at the end of a prompt may split differently"
    assert row.answer == CHAT[-1].content


def test_there_is_never_a_second_start_token(tmp_path: Path, maker: Tokenizer) -> None:
    model = write_model(tmp_path / "m", maker, chat_template=LLAMA3)
    tokenizer = ChatTokenizer.load(model)
    row = encode(model, CHAT)
    assert isinstance(row, EncodedRow)
    assert row.input_ids.count(tokenizer.bos_id or -1) + (tokenizer.bos_id == 0) * row.input_ids.count(0) == 1
    assert tokenizer.text_ids("<s>hello").count(tokenizer.bos_id) == 1
    assert tokenizer.text_ids("hello").count(tokenizer.bos_id) == 1


def test_an_answer_inside_the_thinking_tag_is_found_where_the_template_puts_it(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", byte_level(), chat_template=THINKING)
    row = encode(model, (Message("user", "q"), Message("assistant", "think")))
    assert isinstance(row, EncodedRow)
    assert trained_pieces(model, row) == ["<think>\n\n</think>\n\nthink<|im_end|>"]


def test_an_answer_that_the_template_rewrites_is_left_out_with_the_place(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", byte_level(), chat_template=THINKING)
    row = encode(model, (Message("user", "q"), Message("assistant", "<think>hm</think>yes")))
    assert isinstance(row, Problem)
    assert row.reason is DropReason.ROUND_TRIP
    assert "<think>hm</think>yes" in row.detail


@pytest.mark.parametrize(
    ("template", "hint"),
    [
        (CHATML.replace("m['content']", "m['content'] | upper"), "missing from the rendered text"),
        (CHATML.replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant\\n<think>\\n' }}"), "<think>"),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "missing"),
    ],
)
def test_a_template_that_does_not_round_trip_refuses_and_shows_where(tmp_path: Path, template: str, hint: str) -> None:
    model = write_model(tmp_path / "m", byte_level(), chat_template=template)
    with pytest.raises(EngineError) as caught:
        encode(model, CHAT)
    assert caught.value.code == "data.template_round_trip"
    assert hint in caught.value.cause


def test_turns_that_the_template_refuses_are_left_out_with_its_words(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", byte_level(), chat_template=GEMMA)
    row = encode(model, (Message("system", "be kind"), *CHAT))
    assert isinstance(row, Problem)
    assert (row.reason, row.detail) == (DropReason.TEMPLATE_REFUSED, "System role not supported")


def test_trimmed_whitespace_and_control_tokens_in_text_are_noted(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", byte_level(), chat_template=GEMMA)
    row = encode(model, (Message("user", "what is <end_of_turn>?"), Message("assistant", "  yes \n")))
    assert isinstance(row, EncodedRow)
    assert set(row.notes) == {Note.CONTROL_TOKEN, Note.WHITESPACE_TRIMMED}
    assert trained_pieces(model, row) == ["yes<end_of_turn>"]


def test_a_template_without_end_token_is_noted(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    row = encode(write_model(tmp_path / "m", byte_level(), chat_template=template), CHAT)
    assert isinstance(row, EncodedRow)
    assert Note.TURN_NOT_CLOSED in row.notes


def test_a_date_in_the_template_can_be_fixed(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", byte_level(), chat_template="{{ strftime_now('%d %b %Y') }}" + CHATML)
    tokenizer = ChatTokenizer.load(model, now=datetime(2024, 7, 26))
    assert tokenizer.render(CHAT).startswith("26 Jul 2024<|im_start|>")


def test_templates_are_found_in_file_before_config_and_by_name_in_lists(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "x"}, {"name": "default", "template": CHATML}]
    model = write_model(tmp_path / "m", byte_level(), chat_template=named)
    assert ChatTokenizer.load(model).template.text == CHATML
    (model / "chat_template.jinja").write_text(GEMMA, "utf-8")
    assert ChatTokenizer.load(model).template.origin == "chat_template.jinja"
    without_default = write_model(tmp_path / "n", byte_level(), chat_template=named[:1])
    with pytest.raises(EngineError, match="none of them is called default"):
        ChatTokenizer.load(without_default)


def test_a_model_without_template_gets_the_stated_default_with_an_end_token(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", byte_level())
    tokenizer = ChatTokenizer.load(model)
    assert tokenizer.template.is_default
    row = encode(model, CHAT)
    assert isinstance(row, EncodedRow)
    assert [piece.strip() for piece in trained_pieces(model, row)] == [f"{m.content}</s>" for m in CHAT[1::2]]


def test_prompts_and_completions_are_joined_plainly_without_a_template(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", byte_level())
    tokenizer = ChatTokenizer.load(model)
    encoder = RowEncoder(tokenizer, EncodeOptions(64, TrainOn.COMPLETIONS, keep_prompts=True))
    turns = (Message("user", "2 + 2 ="), Message("assistant", " 4"))
    (row,) = encoder.encode([SourceRow(1, RowKind.PROMPT_COMPLETION, turns, prompt="2 + 2 =", answer=" 4")])
    assert isinstance(row, EncodedRow)
    assert tokenizer.decode(row.input_ids) == "<s>2 + 2 = 4</s>"
    assert trained_pieces(model, row) == [" 4</s>"]
    assert tokenizer.decode(row.prompt_ids) == "<s>2 + 2 ="


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append('x') }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(tmp_path: Path, attack: str) -> None:
    model = write_model(tmp_path / "m", byte_level(), chat_template=attack + CHATML)
    with pytest.raises(EngineError) as caught:
        encode(model, CHAT)
    assert caught.value.code == "data.template_round_trip"


def test_broken_tokenizer_folders_are_refused_with_the_reason(tmp_path: Path, chatml: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(EngineError, match=r"no tokenizer\.json"):
        ChatTokenizer.load(empty)
    (chatml / "chat_template.jinja").write_text("{% for %}", "utf-8")
    with pytest.raises(EngineError, match="cannot be compiled"):
        ChatTokenizer.load(chatml)
    (chatml / "tokenizer_config.json").write_text("{", "utf-8")
    with pytest.raises(EngineError, match="not valid JSON"):
        ChatTokenizer.load(chatml)
    (chatml / "tokenizer.json").write_text('{"model": 3}', "utf-8")
    with pytest.raises(EngineError, match="cannot be read as a tokenizer"):
        ChatTokenizer.load(chatml)
