"""Chat templates: where a model folder keeps them, and the sandbox they run in.

Owns the jinja2 environment, which renders exactly what transformers' `apply_chat_template` renders (a test compares
them), and the default used when a model brings no template. Must not know tokens. A template is code from strangers:
it runs in jinja2's immutable sandbox and sees plain strings, lists and dicts only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from engine.data.rows import Message
from engine.errors import EngineError

if TYPE_CHECKING:
    from jinja2 import Template

DEFAULT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""Stated in every report that uses it, because whoever talks to the trained model must use it too."""


class TemplateRefusal(Exception):
    """The template raised on these turns; the message says why."""


@dataclass(frozen=True, slots=True)
class TemplateSource:
    text: str
    origin: str
    """The file it came from, or "built-in default"."""

    @property
    def is_default(self) -> bool:
        return self.text == DEFAULT_TEMPLATE


def find_template(model_dir: Path, tokenizer_config: dict[str, Any]) -> TemplateSource:
    """The model's template: `chat_template.jinja`, else `tokenizer_config.json` (string or named list), else ours."""
    file = model_dir / "chat_template.jinja"
    if file.is_file():
        try:
            return TemplateSource(file.read_text("utf-8"), file.name)
        except (OSError, UnicodeDecodeError) as error:
            raise EngineError("model.template_unreadable", f"Cannot read {file}.", cause=str(error)) from error
    found = tokenizer_config.get("chat_template")
    if isinstance(found, str) and found:
        return TemplateSource(found, "tokenizer_config.json")
    if isinstance(found, list | dict) and found:
        return TemplateSource(_named(found), 'tokenizer_config.json, template "default"')
    return TemplateSource(DEFAULT_TEMPLATE, "built-in default")


def _named(found: list[Any] | dict[str, Any]) -> str:
    if isinstance(found, dict):
        templates = found
    else:
        templates = {t.get("name", ""): t.get("template") for t in found if isinstance(t, dict)}
    chosen = templates.get("default")
    if isinstance(chosen, str):
        return chosen
    raise EngineError(
        "model.template_ambiguous",
        "The model has several chat templates and none of them is called default.",
        cause=f"Their names: {', '.join(sorted(map(str, templates)))}.",
        next_step="Put the template you want into chat_template.jinja in the model's folder.",
    )


class ChatTemplate:
    """A compiled template. `render` gives the text of turns, as transformers would."""

    def __init__(self, source: TemplateSource, variables: dict[str, str], now: datetime | None = None) -> None:
        """`variables` are the special tokens by name; `now` fixes the date that templates can ask for."""
        import jinja2

        self.source = source
        self._variables = variables
        try:
            self._template = _compile(source.text, (lambda: now) if now else datetime.now)
        except (jinja2.TemplateError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            raise EngineError(
                "model.template_broken",
                f"The chat template in {source.origin} cannot be compiled.",
                cause=f"{error}" + (f" (line {line})" if line else ""),
                next_step="Repair the template, or use a model folder whose template works.",
            ) from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Text of the turns; with `add_generation_prompt` also the opening of the assistant's next turn."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(
                messages=turns,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        except Exception as error:  # a template may raise anything at all
            raise TemplateRefusal(str(error) or type(error).__name__) from error


def _compile(text: str, now: Callable[[], datetime]) -> Template:
    """The template in the environment that transformers uses: same flags, filters, globals and tags."""
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(jinja2.ext.Extension):
        """`{% generation %}` marks answers for one library; here its body is rendered as if the tag were not there."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_as_is"), [], [], body).set_lineno(line)

        def _as_is(self, caller: Callable[[], str]) -> str:
            return caller()

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )

    class PlainNamespace(jinja2.utils.Namespace):
        """A namespace that keeps names with a leading underscore out, like every other door of the sandbox."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"A template must not store {name!r}.")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class DictMaker:
        """What `dict` is in a template: it can be called, and nothing else of the type can be reached."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args, **kwargs)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
    environment.globals["dict"] = DictMaker()
    environment.globals["namespace"] = PlainNamespace
    return environment.from_string(text)
