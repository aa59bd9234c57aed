"""Specs as files: commented TOML out, checked TOML in, and the hash that names a spec.

Owns the text form of a spec. Must not know runs. The comments come from the descriptions in `engine.jobs.spec`, so
the file explains itself and cannot drift from the code.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import EngineError
from engine.jobs.spec import (
    ContextSection,
    DistillationSection,
    DistributedSection,
    EvaluationSection,
    ExpansionSection,
    ExportSection,
    JobSpec,
    MixSection,
    StopSection,
    StreamSection,
    Task,
    TrainingSection,
)
from engine.jobs.spec_growth import LATER_STAGE_FIELDS
from engine.jobs.spec_paths import Named, NamedKind, map_files
from engine.profiles import NOT_FINITE, allowed_words, load_toml, not_finite
from engine.toml_lines import located, numbered_from_one

_HEADER = """\
# A Scaler Wizard job. Run it again anywhere with:  scaler-wizard run spec.toml
# Every key may be left out; its default is then used. Unknown keys are errors.
# Relative file names are relative to this file's folder.
"""
_COMMENT_WIDTH = 118
_GROWTH_TRAINING = ("new_learning_rate", "new_warmup_ratio", "unfreeze_after")
_LONG_TRAINING = ("offload_activations", "loss_chunk_tokens", "tokens_per_step")
_LONG_EVALUATION = ("lengths", "needle_prompts")
_STREAM_TRAINING = ("max_tokens", "ramp_from", "ramp_ratio", "decay_ratio", "final_rate_ratio", "trainable")
_TASK_EVALUATION = ("tasks", "tasks_every_steps", "tasks_limit", "tasks_part")
_OPTIONAL_TABLES = {
    "context": ContextSection(),
    "stream": StreamSection(),
    "stop": StopSection(),
    "distributed": DistributedSection(),
    "distillation": DistillationSection(),
    "mix": MixSection(),
    "export": ExportSection(),
}
_ROWS = ("adapters", "sources", "suites", "retention", "stages")
"""Arrays of tables."""


def load_spec(path: Path) -> JobSpec:
    """Read and check a spec. Raises EngineError that names file, line and key."""
    _require_keys(Path(path))
    try:
        with naming_lines(Path(path)):
            return canonical(load_toml(Path(path), JobSpec, what="spec"))
    except EngineError as error:
        if "key 'task'" in error.what:
            raise _unknown_task(error) from error
        raise


def _require_keys(path: Path) -> None:
    """Every key has a default, and a file without any is what a full disk or a broken copy leaves: it would start
    another job than was meant. Raises EngineError `spec.empty`; files that cannot be read are for `load_toml`."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        if all(not line.strip() or line.lstrip().startswith("#") for line in lines):
            raise EngineError(
                "spec.empty",
                f"{path} sets no key: it is empty, or holds nothing but comments.",
                cause="A full disk or a copy that broke off leaves such a file.",
                next_step="Copy it again, or write a new one: scaler-wizard plan demo -o FILE.",
            )


@contextlib.contextmanager
def naming_lines(path: Path) -> Iterator[None]:
    """Refusals of the spec in `path`, whoever finds them out: they name the file, and the line of the key they are
    about. Other errors pass unchanged."""
    try:
        yield
    except EngineError as error:
        if not (error.key or error.code.startswith("spec.")):
            raise
        with contextlib.suppress(OSError, UnicodeDecodeError):
            error = located(error, path.read_text(encoding="utf-8-sig"))
        raise EngineError(
            error.code, f"{path}: {error.what}", cause=error.cause, next_step=error.next_step, exit_code=error.exit_code
        ) from error


def canonical(spec: JobSpec) -> JobSpec:
    """The same spec with every limit checked and 32 written where a float is meant turned into 32.0."""
    tree = msgspec.to_builtins(spec)
    if key := not_finite(tree):
        raise _outside(key, NOT_FINITE)
    try:
        return msgspec.convert(tree, JobSpec, strict=True)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise _outside(numbered_from_one(path.rstrip("`")), message) from error


def _outside(key: str, message: str) -> EngineError:
    allowed = allowed_words(JobSpec, key) if key else ""
    return EngineError(
        "spec.value",
        f"The spec has a value outside its limits: {key}: {message}{f'; allowed: {allowed}' if allowed else ''}.",
        next_step="Correct that value.",
        key=key,
    )


def _unknown_task(error: EngineError) -> EngineError:
    """A task that no spec has; most likely somebody wants to train every weight, perhaps of a 4-bit base."""
    return EngineError(
        error.code,
        error.what,
        cause="Weights packed to 4 bits cannot be trained themselves: 4-bit values have no usable gradient.",
        next_step='Use task = "qlora" (4-bit base) or "lora" for an adapter, "mix" to join adapters, "full" to train '
        'every weight, "expand" to grow a model, "extend" for a longer window, "new_blocks", "new_coordinates" or '
        '"qlora_grown" to train a grown one.',
    )


def with_absolute_paths(spec: JobSpec, base: Path) -> JobSpec:
    """Files named relative to `base` become absolute, because a run works in its own directory."""

    def resolve(named: Named) -> str:
        path = base / Path(named.value).expanduser()
        return named.value if named.kind is NamedKind.MODEL and not path.is_dir() else str(path)

    return map_files(spec, resolve)


def spec_hash(spec: JobSpec) -> str:
    """SHA-256 over everything that changes the result; the prediction is a promise, not a setting."""
    tree = msgspec.to_builtins(canonical(spec))
    del tree["prediction"]
    for key in _keys_without_effect(spec):
        table, _, name = key.rpartition(".")
        (tree[table] if table else tree).pop(name)
    for stage in tree.get("stages", ()):
        for name in LATER_STAGE_FIELDS:
            if stage[name] is None:
                del stage[name]
    return hashlib.sha256(msgspec.json.encode(tree, order="sorted")).hexdigest()


def dump_spec(spec: JobSpec) -> str:
    """The spec as commented TOML; `load_spec` of it gives an equal spec. Raises EngineError for impossible values."""
    lines = [_HEADER]
    tables: list[str] = []
    spec = canonical(spec)
    hidden = _keys_without_effect(spec)
    for name, description in _described(type(spec)):
        value = getattr(spec, name)
        if name in hidden:
            continue
        if isinstance(value, msgspec.Struct):
            tables += ["", *_comment(_doc_of(value)), f"[{name}]", *_entries(value, name, hidden)]
        elif name in _ROWS:
            tables += _rows(name, value)
        else:
            lines += [*_comment(description), f"{name} = {_literal(value)}"]
    return "\n".join([*lines, *tables]) + "\n"


def _keys_without_effect(spec: JobSpec) -> frozenset[str]:
    """Keys that say nothing in this spec (of growth, long windows, streams, several cards); a job without them is
    written and hashed so."""
    plain = TrainingSection()
    rare = (*_LONG_TRAINING, *_STREAM_TRAINING)
    keys = {f"training.{n}" for n in rare if getattr(spec.training, n) == getattr(plain, n)}
    evaluation, seldom = EvaluationSection(), (*_LONG_EVALUATION, *_TASK_EVALUATION)
    keys |= {f"evaluation.{n}" for n in seldom if getattr(spec.evaluation, n) == getattr(evaluation, n)}
    keys |= {name for name, plain_table in _OPTIONAL_TABLES.items() if getattr(spec, name) == plain_table}
    keys |= {name for name in _ROWS if name != "stages" and not getattr(spec, name)}
    if not (spec.task.trains_adapter or spec.task in (Task.EXTEND, Task.MIX)):
        return frozenset(keys if spec.stages else keys | {"stages"})
    keys |= {f"training.{n}" for n in _GROWTH_TRAINING if getattr(spec.training, n) == getattr(plain, n)}
    keys |= {"stages"} if not spec.stages else set()
    keys |= {"expansion"} if spec.expansion == ExpansionSection() else set()
    return frozenset(keys)


def _entries(section: msgspec.Struct, table: str = "", hidden: frozenset[str] = frozenset()) -> list[str]:
    lines: list[str] = []
    for name, description in _described(type(section)):
        if f"{table}.{name}" not in hidden:
            lines += [*_comment(description), f"{name} = {_literal(getattr(section, name))}"]
    return lines


def _rows(table: str, rows: tuple[msgspec.Struct, ...]) -> list[str]:
    """One table per row; what a row leaves out is shown as a comment, and explained in the first."""
    lines: list[str] = []
    for number, row in enumerate(rows):
        lines += ["", *(_comment(" ".join(_doc_of(row).split())) if number == 0 else ()), f"[[{table}]]"]
        for name, description in _described(type(row)):
            value = getattr(row, name)
            lines += _comment(description) if number == 0 else []
            lines += [f"{name} = {_literal(value)}"] if value is not None else [f"# {name} ="] if number == 0 else []
    return lines


def _doc_of(section: msgspec.Struct) -> str:
    return "" if type(section).__doc__ is None else str(type(section).__doc__).strip()


def _described(kind: type[msgspec.Struct]) -> list[tuple[str, str]]:
    """Field names in order, each with the description of its Meta."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return [
        (name, next((m.description or "" for m in typing.get_args(hints[name]) if isinstance(m, msgspec.Meta)), ""))
        for name in kind.__struct_fields__
    ]


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _COMMENT_WIDTH)]


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return _quoted(str(value.value))
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_quoted(key)} = {_literal(item)}' for key, item in value.items())}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(_literal(item) for item in value)}]"
    return repr(value)  # int and float: Python's shortest exact form is valid TOML


def _quoted(text: str) -> str:
    """A TOML basic string."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    out: list[str] = []
    for character in text:
        code = ord(character)
        if 0xD800 <= code <= 0xDFFF:
            raise EngineError(
                "spec.text",
                f"{text!a} cannot be written to a spec: it is not valid Unicode.",
                next_step="Rename the file so that its name is valid UTF-8.",
            )
        if character in escapes:
            out.append(escapes[character])
        else:
            out.append(f"\\u{code:04X}" if code < 0x20 or code == 0x7F else character)
    return f'"{"".join(out)}"'
