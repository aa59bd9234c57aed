"""Chat templates in Go's language: derived from the model's own, kept only where they give the same text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.data.rows import Message
from engine.data.tokenizer import ChatTokenizer
from engine.export.go_template import execute
from engine.export.ollama import Modelfile, go_template, ollama_values, parameters_of
from engine.export.ollama_files import window_of
from engine.export.stops import stop_ids
from engine.resources import demo_model_dir

TRIMMED = (
    "{% for message in messages %}{% set text = '<|im_start|>' + message['role'] + ':' + message['content'] | trim "
    "+ '<|im_end|>' %}{% if loop.index0 == 0 %}{% set text = 'HEAD' + text %}{% endif %}{{ text }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}"
)
SYSTEM_IN_USER = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set said = messages[0].content %}"
    "{% else %}{% set rest = messages %}{% set said = '' %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
    "[INST] {% if loop.first and said %}<<SYS>>{{ said }}<</SYS>>{% endif %}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model' }}{% endif %}"
)
SYSTEM_BEFORE_LAST = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{% if loop.last and messages[0].role == 'system' %}"
    "{{ messages[0].content }}{% endif %}{{ m.content }}[/INST]{% elif m.role == 'assistant' %}{{ m.content }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
NUMBERED = (
    "{% for m in messages %}{{ loop.index }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
UPPER = "{% for m in messages %}[{{ m.role }}]{{ m.content | upper }}{% endfor %}"
BRACES = "{% for m in messages %}{{ '{{' + m.role + '}} ' + m.content + '<|im_end|>' }}{% endfor %}"
DEMO = json.loads((demo_model_dir() / "config.json").read_text())
PAIRS = DEMO["hidden_size"] // DEMO["num_attention_heads"] // 2
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "factor": 32.0, "original_max_position_embeddings": 4096,
    "long_factor": [4.0] * PAIRS, "short_factor": [1.0] * PAIRS,
}  # fmt: skip
CONVERSATIONS = (
    [Message("user", "How far?")],
    [Message("system", "Be brief."), Message("user", "a\nb")],
    [Message("user", "1"), Message("assistant", "2 {{ x }}"), Message("user", '"3"')],
    [Message("system", "S"), *(Message(role, role[0]) for role in ("user", "assistant") * 3), Message("user", "end")],
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> object:
    """Makes the demo's tokenizer with another template."""

    def make(template: str, **config: object) -> ChatTokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo_model_dir() / name, tmp_path / name)
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | config
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        (tmp_path / "chat_template.jinja").write_text(template)
        return ChatTokenizer.load(tmp_path)

    return make


@pytest.mark.parametrize(
    "template",
    [TRIMMED, SYSTEM_IN_USER, DEFAULT_SYSTEM, BRACES, (demo_model_dir() / "chat_template.jinja").read_text()],
    ids=["trimmed", "system in the first turn", "a default system message", "braces", "the demo's"],
)
def test_the_go_template_gives_the_text_of_the_models_own(template: str, tokenizer: object) -> None:
    chat: ChatTokenizer = tokenizer(template)  # type: ignore[operator]
    found, why = go_template(chat)
    assert found is not None, why
    assert found.takes_system
    assert found.conversations >= 20
    for turns in CONVERSATIONS:
        assert execute(found.text, ollama_values(turns)) == chat.render(turns, add_generation_prompt=True)


def test_a_template_without_a_place_for_a_system_message_says_so(tokenizer: object) -> None:
    found, _ = go_template(tokenizer(NO_SYSTEM))  # type: ignore[operator]
    assert found is not None
    assert not found.takes_system


@pytest.mark.parametrize(("template", "why"), [(NUMBERED, "same text between"), (UPPER, "otherwise")])
def test_a_template_that_cannot_be_carried_over_is_left_out_with_the_reason(
    template: str, why: str, tokenizer: object
) -> None:
    found, reason = go_template(tokenizer(template))  # type: ignore[operator]
    assert found is None
    assert why in reason


def test_a_system_message_that_wanders_to_the_last_turn_is_not_shown_as_if_it_stood_first(tokenizer: object) -> None:
    """Its place depends on the number of turns; without it the rest can be proven."""
    found, why = go_template(tokenizer(SYSTEM_BEFORE_LAST))  # type: ignore[operator]
    assert found is None or not found.takes_system, why


def test_what_a_template_says_only_for_some_contents_is_no_proof(tokenizer: object) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{% if 'you' in m.content %}!{% endif %}{{ m.content }}{% endfor %}"
    assert go_template(tokenizer(template))[0] is not None  # type: ignore[operator]
    odd = template.replace("you", "quotes")
    found, why = go_template(tokenizer(odd))  # type: ignore[operator]
    assert found is None
    assert "otherwise" in why


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a {{- 1 -}} b", "a1b"),
        ('{{ if eq .System "S" }}x{{ else if ne .System "" }}y{{ else }}z{{ end }}', "x"),
        ('{{ $s := .System }}{{ range .Messages }}[{{ $s }}]{{ $s = "" }}{{ .Content }}{{ end }}', "[S]one[]two"),
        (
            '{{ range $i, $m := .Messages }}{{ $i }}{{ if and (eq $i 1) (not (ne $m.Role "a")) }}!{{ end }}{{ end }}',
            "01!",
        ),
        ("{{ len .Messages }}{{ len (slice $.Messages 1) }}", "21"),
        ('{{ "{{" }}{{ "a\\"b\\n" }}', '{{a"b\n'),
    ],
)
def test_the_evaluator_does_what_go_does(template: str, expected: str) -> None:
    """These and the derived templates were run by Go 1.27's text/template on 330 conversations, alike."""
    values = {"System": "S", "Messages": [{"Role": "u", "Content": "one"}, {"Role": "a", "Content": "two"}]}
    assert execute(template, values) == expected


@pytest.mark.parametrize("template", ["{{ if .System }}x", "{{ printf .System }}", "{{ $x = 1 }}", "{{ | }}", "{{ }}"])
def test_what_the_evaluator_does_not_know_is_an_error_and_no_empty_text(template: str) -> None:
    with pytest.raises(ValueError, match=r"template|declared"):
        execute(template, {"System": "S", "Messages": []})


def test_the_token_that_closes_a_turn_stops_even_where_no_file_calls_it_an_end(tokenizer: object) -> None:
    chat: ChatTokenizer = tokenizer(DEFAULT_SYSTEM, eos_token="<|endoftext|>")  # type: ignore[operator]
    folder = Path(chat.template.origin).parent
    assert stop_ids(folder, chat)[0] == chat.token_id("<|im_end|>")
    assert chat.token_id("<|endoftext|>") in stop_ids(folder, chat)


def test_a_modelfile_names_everything_ollama_has_to_be_told() -> None:
    chat = ChatTokenizer.load(demo_model_dir())
    template, _ = go_template(chat)
    text = Modelfile(
        model="demo.Q8_0.gguf",
        adapter="demo.adapter.gguf",
        template=template,
        stops=("<|im_end|>", 'a"b', "\\n", "\n", '"'),
        parameters=parameters_of(demo_model_dir(), 256, long_window=False),
        licence="apache-2.0",
        notes=("one\nline",),
    ).text()
    assert text.startswith('# one line\nFROM ./demo.Q8_0.gguf\nADAPTER ./demo.adapter.gguf\nTEMPLATE """')
    assert template is not None
    assert template.text in text
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER stop "a"b"\nPARAMETER stop "\\n"\n' in text
    assert 'PARAMETER stop """\n"""\nPARAMETER stop """""""\n' in text
    assert "PARAMETER num_ctx 256\nPARAMETER temperature 0\nPARAMETER repeat_penalty 1\n" in text
    assert text.endswith('LICENSE """apache-2.0"""\n')


@pytest.mark.parametrize("eos", [[2, -1], [2, True, 99_999], -1, None])
def test_only_rows_of_the_vocabulary_are_stop_tokens(eos: object, tmp_path: Path) -> None:
    shutil.copytree(demo_model_dir(), tmp_path / "m")
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((tmp_path / "m" / name).read_text())
        (tmp_path / "m" / name).write_text(json.dumps(settings | {"eos_token_id": eos}))
    chat = ChatTokenizer.load(tmp_path / "m")
    assert stop_ids(tmp_path / "m", chat) == [2]
    assert [chat.token_text(number) for number in stop_ids(tmp_path / "m", chat)] == ["<|im_end|>"]


def test_settings_are_written_as_ollama_reads_numbers(tmp_path: Path) -> None:
    said = {"top_k": 1_000_000, "top_p": 0.95, "temperature": 1.0, "min_p": float("inf"), "repetition_penalty": 1.05}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    found = dict(parameters_of(tmp_path, 4096, long_window=False))
    assert found == {
        "num_ctx": "4096", "temperature": "1", "top_p": "0.95", "top_k": "1000000", "repeat_penalty": "1.05"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "window", "about_length"),
    [
        ({"model_type": "mistral", "max_position_embeddings": 32_768, "sliding_window": 4096}, 4096, 4096),
        ({"model_type": "mistral", "max_position_embeddings": 32_768, "sliding_window": None}, 32_768, 32_768),
        ({"model_type": "phi3", "max_position_embeddings": 131_072, "rope_parameters": LONGROPE}, 4096, 131_072),
        ({"model_type": "gemma3", "text_config": DEMO | {"model_type": "llama"}}, 256, 256),
    ],
    ids=["Mistral 0.1", "Mistral 0.3", "LongRoPE", "with an image part"],
)
def test_the_window_is_the_one_in_which_llama_cpp_is_right(
    changed: dict[str, Any], window: int, about_length: int, tmp_path: Path
) -> None:
    base = {} if "text_config" in changed else DEMO
    (tmp_path / "config.json").write_text(json.dumps(base | changed))
    assert window_of(tmp_path, long_window=False) == window
    assert window_of(tmp_path, long_window=True) == about_length


def test_a_wide_window_is_not_asked_for_unless_the_job_was_about_it() -> None:
    assert ("num_ctx", "8192") in parameters_of(demo_model_dir(), 131_072, long_window=False)
    assert ("num_ctx", "131072") in parameters_of(demo_model_dir(), 131_072, long_window=True)
