"""Changing the stages of a plan: add, remove, rename, tokens, length, growth, mix, rate, stop rule.

Owns what typed words mean. Must not know models or machines: what cannot be is refused by the finished spec.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from engine.errors import EngineError
from engine.jobs.spec_growth import SIZES, StageSection
from engine.units import parse_count, parse_length

Stages = tuple[StageSection, ...]
FIELDS = ("name", "tokens", "length", "growth", "mix", "rate", "stop")
"""What can be typed for a stage."""
PLACEHOLDERS = {
    "name": "a name for this stage",
    "tokens": "tokens of this stage: 20M, 1.5B",
    "length": "tokens of a sequence in this stage: 512, 2k; empty: as in the job",
    "growth": "how the model grows before it: 2x, 7B, layers 12, hidden 320 ffn 1024; empty: not at all",
    "mix": "weights in this stage: web 0.4 code 0.6; empty: as in the job",
    "rate": "peak learning rate of this stage, such as 1e-4; empty: as in the job",
    "stop": "ends it earlier: loss 2.1, plateau 3, hours 2, usd 5; empty: nothing does",
}
_PAIR = re.compile(r"([a-z0-9_-]+)\s*[:= ]\s*([0-9.eE+-]+[kKmMbB]?)")
_STOPS = {"loss": "stop_loss", "plateau": "stop_plateau_evaluations", "hours": "stop_hours", "usd": "stop_usd"}
_SIZE_WORDS = {"experts": "experts", "kv": "kv_heads", "kv-heads": "kv_heads", "width": "hidden", "depth": "layers"}


def whole(tokens: int) -> Stages:
    """The job as its only stage."""
    return (StageSection(name="first", max_tokens=max(tokens, 1)),)


def tokens_typed(text: str) -> int:
    """Raises EngineError."""
    found = _tokens(text)["max_tokens"]
    assert isinstance(found, int)
    return found


def with_added(stages: Stages, place: int, tokens: int) -> Stages:
    """A stage after `place`, like it but without growth. The first one splits the job's `tokens` in two."""
    if not stages:
        half = max(tokens // 2, 1)
        return (StageSection(name="first", max_tokens=half), StageSection(name="second", max_tokens=tokens - half or 1))
    like = stages[place]
    plain = {name: getattr(StageSection(), name) for name in (*SIZES, "to", "operators")}
    names = {stage.name for stage in stages}
    name = next(one for one in (f"stage-{n}" for n in range(len(stages) + 1, 10_000)) if one not in names)
    added = msgspec.structs.replace(like, name=name, **plain)
    return (*stages[: place + 1], added, *stages[place + 1 :])


def with_removed(stages: Stages, place: int) -> Stages:
    """Without that stage; a single one that is left is the job itself, unless it grows or says anything of its own."""
    left = (*stages[:place], *stages[place + 1 :])
    if len(left) == 1 and left[0] == StageSection(name=left[0].name, max_tokens=left[0].max_tokens):
        return ()
    return left


def with_typed(stages: Stages, place: int, what: str, text: str) -> Stages:
    """One of FIELDS of a stage, as it was typed. Raises EngineError `stage.*`."""
    text = text.strip()
    values = _PARSERS[what](text)
    try:
        changed = msgspec.convert({**msgspec.structs.asdict(stages[place]), **values}, StageSection)
    except msgspec.ValidationError as error:
        raise EngineError(
            "stage.value", f"{text!r} is not possible for the {what} of a stage.", cause=str(error),
            next_step=f"Type {PLACEHOLDERS[what]}.",
        ) from error  # fmt: skip
    return (*stages[:place], changed, *stages[place + 1 :])


def typed(stage: StageSection, what: str) -> str:
    """What stands in the field: the present value as it would be typed."""
    if what == "name":
        return stage.name
    if what in ("tokens", "length", "rate"):
        value = {"tokens": stage.max_tokens, "length": stage.max_length, "rate": stage.learning_rate}[what]
        return "" if value is None else f"{value:g}" if what == "rate" else str(value)
    if what == "growth":
        sizes = [f"{name} {value}" for name in SIZES if (value := getattr(stage, name))]
        return stage.to or " ".join(sizes)
    if what == "mix":
        return " ".join(f"{name} {weight:g}" for name, weight in (stage.weights or {}).items())
    stops = [f"{word} {value:g}" for word, name in _STOPS.items() if (value := getattr(stage, name))]
    return " ".join(stops)


def _name(text: str) -> Mapping[str, object]:
    return {"name": text}


def _tokens(text: str) -> Mapping[str, object]:
    count = parse_count(text) if text else 0
    if count < 1:
        raise EngineError("stage.value", "A stage needs tokens to train on.", next_step="Type a number such as 20M.")
    return {"max_tokens": count, "max_steps": None, "epochs": None}


def _length(text: str) -> Mapping[str, object]:
    return {"max_length": parse_length(text) if text else None}


def _growth(text: str) -> Mapping[str, object]:
    values: dict[str, object] = {name: getattr(StageSection(), name) for name in (*SIZES, "to", "operators")}
    if not text:
        return values
    pairs = _pairs(text.lower(), "growth")
    for word, amount in pairs:
        name = _SIZE_WORDS.get(word, word)
        if name not in SIZES:
            raise _unknown("growth", word, SIZES)
        values[name] = int(float(amount))
    if not pairs:
        values["to"] = text
    return values


def _mix(text: str) -> Mapping[str, object]:
    if not text:
        return {"weights": None}
    pairs = _pairs(text, "mix")
    if not pairs:
        raise EngineError("stage.value", f"{text!r} is no mix.", next_step=f"Type {PLACEHOLDERS['mix']}.")
    return {"weights": {name: float(weight) for name, weight in pairs}}


def _rate(text: str) -> Mapping[str, object]:
    return {"learning_rate": _float(text, "rate") if text else None}


def _stop(text: str) -> Mapping[str, object]:
    values: dict[str, object] = dict.fromkeys(_STOPS.values())
    for word, amount in _pairs(text.lower(), "stop"):
        if word not in _STOPS:
            raise _unknown("stop", word, tuple(_STOPS))
        number = _float(amount, "stop")
        values[_STOPS[word]] = int(number) if word == "plateau" else number
    if text and not any(values.values()):
        raise EngineError("stage.value", f"{text!r} is no rule.", next_step=f"Type {PLACEHOLDERS['stop']}.")
    return values


_PARSERS = {
    "name": _name, "tokens": _tokens, "length": _length, "growth": _growth, "mix": _mix, "rate": _rate, "stop": _stop,
}  # fmt: skip


def _pairs(text: str, what: str) -> list[tuple[str, str]]:
    """Words with numbers behind them. Raises EngineError where something else is left over."""
    if not text or (" " not in text.strip() and "=" not in text and ":" not in text):
        return []
    pairs = _PAIR.findall(text)
    if _PAIR.sub("", text).strip(" ,;"):
        raise EngineError("stage.value", f"{text!r} is not understood.", next_step=f"Type {PLACEHOLDERS[what]}.")
    return pairs


def _float(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise EngineError("stage.value", f"{text!r} is no number.", next_step=f"Type {PLACEHOLDERS[what]}.") from None


def _unknown(what: str, word: str, known: Sequence[str]) -> EngineError:
    return EngineError(
        "stage.value",
        f"{word!r} is nothing that the {what} of a stage knows.",
        next_step=f"It knows {', '.join(known)}.",
    )
