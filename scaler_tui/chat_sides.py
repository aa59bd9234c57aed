"""Which models and adapters a chat is with: words like a run's id, "base", a folder, as sides that can be loaded.

Owns the order in which a word is tried, and what of a run is taken: its adapter or model, of an unfinished one the
newest checkpoint. Must not import torch or Textual, nor load anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.jobs.chat_lines import MOST_SIDES, SideOrder

if TYPE_CHECKING:
    from engine.jobs.spec import JobSpec

BASE = "base"
_LEFT_BY_RUNS = (
    ("output/adapter", ""),
    ("output/model", ""),
    ("output/merged", "the merged model"),
    ("output/held/adapter", "the adapter that was not promoted"),
    ("output/held/model", "the model that was not promoted"),
)
_CONTEXT_BASE = "context/model"
"""The base under the config of a longer window, where a run trained for one."""


@dataclass(frozen=True, slots=True)
class ChatAsked:
    """What a chat was asked for, in the user's words."""

    model: str
    compare: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    """More adapters on the same base."""
    base: str = ""
    """Of adapters whose own is not here."""
    quantization: str = ""
    """ "none" or "nf4" for every side; "" as it was trained."""


@dataclass(frozen=True, slots=True)
class ChatSides:
    """Sides in the order they are shown, and the run that the chat belongs to."""

    sides: tuple[SideOrder, ...]
    run_dir: Path | None
    """Chats are kept there."""


@dataclass(frozen=True, slots=True)
class _Named:
    """A word, understood."""

    side: SideOrder
    run_dir: Path | None = None
    origin: str = ""
    """The folder of the model before, for "base"; "" where it is not known or not here."""


def chat_sides(asked: ChatAsked) -> ChatSides:
    """Raises EngineError `model.*`, `run.*`, `adapter.*`, `chat.*`."""
    first = _named(asked.model, asked.base)
    found = [first.side]
    found += [_adapter_on(first, word, asked.base) for word in asked.adapters]
    for word in asked.compare:
        if word.lower() == BASE:
            found.insert(0, _base_of(first, asked.base))
        else:
            found.append(_named(word, asked.base).side)
    if len(found) > MOST_SIDES:
        raise EngineError(
            "chat.many_sides",
            f"{len(found)} models or adapters are too many for one chat.",
            next_step=f"Compare at most {MOST_SIDES} at a time.",
        )
    if asked.quantization:
        found = [replace_kind(side, asked.quantization) for side in found]
    return ChatSides(tuple(_distinct(found)), first.run_dir)


def replace_kind(side: SideOrder, quantization: str) -> SideOrder:
    """The same side, held otherwise."""
    import msgspec

    notes = tuple(note for note in side.notes if not note.startswith("the base in"))
    return msgspec.structs.replace(side, quantization=quantization, notes=notes)


def _distinct(sides: list[SideOrder]) -> Iterator[SideOrder]:
    """No two sides of one name: "b", "b (2)"."""
    import msgspec

    seen: dict[str, int] = {}
    for side in sides:
        seen[side.name] = seen.get(side.name, 0) + 1
        again = seen[side.name]
        yield side if again == 1 else msgspec.structs.replace(side, name=f"{side.name} ({again})")


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _named(word: str, base: str) -> _Named:
    from engine.models.adapter import is_adapter

    folder = Path(word).expanduser()
    if is_adapter(folder):
        return _adapter(folder, folder.resolve().name, base)
    run_dir = _run_dir(word)
    if run_dir is not None:
        return _of_run(run_dir, base)
    model = _model(word)
    name = word if word.lower() == "demo" else Path(word).name or word
    return _Named(SideOrder(name=name, folder=str(model)), origin=base and str(_model(base)))


def _adapter(folder: Path, name: str, base: str) -> _Named:
    from engine.models.adapter import base_of_adapter

    under = _model(base) if base else base_of_adapter(folder)
    side = SideOrder(name=name, folder=str(folder.resolve()), base=str(under.resolve()))
    return _Named(side, origin=str(under.resolve()))


def _adapter_on(first: _Named, word: str, base: str) -> SideOrder:
    """An adapter on the base that the first side has, held the same way."""
    import msgspec

    from engine.models.adapter import is_adapter

    under = first.side.model
    folder = Path(word).expanduser()
    if is_adapter(folder):
        side = SideOrder(name=folder.resolve().name, folder=str(folder.resolve()))
    elif (run_dir := _run_dir(word)) is not None:
        side = _of_run(run_dir, base or under).side
    else:
        raise EngineError(
            "chat.no_adapter",
            f"'{word}' is neither an adapter's folder nor a run.",
            cause="There is no adapter_config.json in it." if folder.is_dir() else "",
            next_step="Give the folder that holds adapter_config.json, or compare with a whole model: --compare.",
        )
    if not side.base and not is_adapter(Path(side.folder)):
        raise EngineError(
            "chat.no_adapter",
            f"{word} has left a whole model, not an adapter.",
            next_step=f"Compare with it instead: --compare {word}",
        )
    held = first.side
    return msgspec.structs.replace(
        side, base=under, quantization=held.quantization, double_quantization=held.double_quantization
    )


def _base_of(first: _Named, base: str) -> SideOrder:
    """The model that the first side was made from, held as that side is."""
    held = first.side
    if not first.origin:
        raise EngineError(
            "chat.no_base",
            f"The model that {held.name} was made from is not known, or not on this machine.",
            next_step="Name it: --base MODEL, or --compare FOLDER.",
        )
    return SideOrder(
        name=BASE,
        folder=first.origin,
        quantization=held.quantization,
        double_quantization=held.double_quantization,
        notes=(Path(first.origin).name,) if first.run_dir is None else (),
    )


def _model(word: str) -> Path:
    from engine.models.resolve import require_weights, resolve_model

    return require_weights(resolve_model(word))


def _run_dir(word: str) -> Path | None:
    from engine.jobs.store import find_run

    if word.lower() == "demo" or (Path(word).expanduser() / "config.json").is_file():
        return None
    try:
        return find_run(word)
    except EngineError:
        return None


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def _of_run(run_dir: Path, base: str) -> _Named:
    """What a run has left so far, on the base as it was trained."""
    from engine.jobs import layout
    from engine.jobs.spec_toml import load_spec
    from engine.models.adapter import is_adapter

    spec = load_spec(run_dir / layout.SPEC)
    folder, note = _left_by(run_dir)
    if not is_adapter(folder):
        source = _source_of(run_dir, spec, base)
        side = SideOrder(name=run_dir.name, folder=str(folder), notes=_notes(note))
        return _Named(side, run_dir, str(source) if source is not None else "")
    under = _under(run_dir, spec, folder, base)
    side = SideOrder(
        name=run_dir.name,
        folder=str(folder),
        base=str(under),
        quantization=spec.quantization_kind,
        double_quantization=spec.quantization.double,
        notes=_notes(note, f"the base in {spec.quantization_kind}, as it was trained")
        if spec.quantization_kind != "none"
        else _notes(note),
    )
    return _Named(side, run_dir, str(under))


def _notes(*texts: str) -> tuple[str, ...]:
    return tuple(text for text in texts if text)


def _left_by(run_dir: Path) -> tuple[Path, str]:
    """(folder, what it is in words). Raises EngineError `run.no_model`."""
    from engine.jobs import checkpoints, layout

    for name, note in _LEFT_BY_RUNS:
        if (run_dir / name / "adapter_config.json").is_file() or (run_dir / name / "config.json").is_file():
            return run_dir / name, note
    steps = checkpoints.sound_steps(run_dir)
    for step in steps:
        folder = run_dir / layout.CHECKPOINTS / checkpoints.folder_name(step)
        if (folder / "adapter_config.json").is_file():
            return folder, f"unfinished: the checkpoint of step {step:,}"
    if steps:
        raise EngineError(
            "run.no_model",
            f"Run {run_dir.name} has checkpoints, and no model that can be talked to yet.",
            cause="Its checkpoints hold only what learns, not a whole model.",
            next_step=f"Let it finish, or stop it: scaler-wizard stop {run_dir.name}; stopping saves the model.",
        )
    raise EngineError(
        "run.no_model",
        f"Run {run_dir.name} has left no model, adapter or checkpoint yet.",
        next_step="Wait for its first checkpoint, or ask for one: scaler-wizard checkpoint " + run_dir.name,
    )


def _under(run_dir: Path, spec: JobSpec, folder: Path, base: str) -> Path:
    """The base under a run's adapter: named, the run's own with a longer window, the spec's, the adapter's."""
    from engine.models.adapter import base_of_adapter

    if base:
        return _model(base).resolve()
    extended = run_dir / _CONTEXT_BASE
    if (extended / "config.json").is_file():
        return extended
    source = _source_of(run_dir, spec, "")
    return source if source is not None else base_of_adapter(folder).resolve()


def _source_of(run_dir: Path, spec: JobSpec, base: str) -> Path | None:
    """The model that was trained, where it still is on this machine; nothing is fetched."""
    from engine.models.resolve import require_weights, resolve_model

    try:
        named = resolve_model(base or spec.model.source, revision="" if base else spec.model.revision, offline=True)
        return require_weights(named).resolve()
    except EngineError:
        if base:
            raise
        return None


def can_chat(run_dir: Path) -> bool:
    """Whether the run seems to have left something to talk to; a few look-ups of files."""
    from engine.jobs import checkpoints

    names = ("adapter_config.json", "config.json")
    left = any((run_dir / place / name).is_file() for place, _ in _LEFT_BY_RUNS for name in names)
    return left or checkpoints.newest_step(run_dir) > 0


def of_run_with_base(run_dir: Path) -> ChatAsked:
    """The chat that a run's screens open: with the base beside it where it costs no second model."""
    try:
        folder, _ = _left_by(run_dir)
    except EngineError:
        return ChatAsked(str(run_dir))
    shares = (folder / "adapter_config.json").is_file()
    return replace(ChatAsked(str(run_dir)), compare=(BASE,) if shares else ())
