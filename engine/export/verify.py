"""An export held against what it was made of: the same prompts, template and stop tokens in both programs.

Owns the two processes (transformers, llama.cpp), the comparison and what counts as failed. Must not know how anything
was exported.

What fails: tokenizers or templates that give other tokens; a file that runs on after one of the model's stop tokens, or
ends where the model goes on; at f32, f16 and bf16 less than 95 % of positions with the
same most likely token, or perplexity more than 2 % above the reference's; at q8_0 less than 90 %, or 5 %; figures that
are not numbers, whatever the type. Smaller types have no bound of their own: their figures are shown, and the user
chooses. Two tokens that the reference holds for nearly equal (their logits closer together than both programs' largest
difference and than a thousandth of their range) count as the same.
"""

from __future__ import annotations

import hashlib
import math
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.errors import EngineError, ExitCode
from engine.evaluation.asked import Asked, write_asked
from engine.export.runtime import Runtime, without_tokens
from engine.jobs.export_report import Agreement
from engine.surgery.helpers import Failing, Progress, run_module

BOUNDS = {"f32": (0.95, 0.02), "f16": (0.95, 0.02), "bf16": (0.95, 0.02), "hf": (0.95, 0.02), "q8_0": (0.90, 0.05)}
"""Least share of same tokens, most growth of perplexity."""
_NEARLY = 1e-3
"""Of the range of the reference's logits: what two programs' summing differs by, and 16-bit products."""
Say = Callable[[str, int, int], None]
"""(words, done, total)."""
_ASKED, _OTHER = "asked.json", "other.npz"
_SCRIPT = Path(__file__).with_name("llama_sayings.py")
_FAILING = Failing("verify.failed", "Export without the comparison: --no-verify", own_exit_code=True)


@dataclass(frozen=True, slots=True)
class Spoken:
    """A folder that transformers is asked."""

    folder: Path
    adapter: Path | None = None


@dataclass(frozen=True, slots=True)
class Verifier:
    """One model's questions and the reference's answers, in a folder."""

    place: Path
    asked: Asked
    reference: dict[str, Any]

    @classmethod
    def of(cls, spoken: Spoken, asked: Asked, place: Path, say: Say, other: Path | None = None) -> Verifier:
        """Ask transformers, `other` in the same process. Answers that lie there already are an interrupted attempt's:
        they are taken. Raises EngineError `verify.*`."""
        if not asked.chats:
            raise EngineError(
                "verify.failed",
                "There is nothing to compare.",
                cause="The model's chat template takes none of the prompts, or none fits into its window.",
            )
        place.mkdir(parents=True, exist_ok=True)
        write_asked(place / _ASKED, asked)
        answers = place / reference_name(asked)
        if other is not None or not answers.is_file():
            _ask_transformers(spoken, place, answers, other, say)
        return cls(place, asked, _loaded(answers))

    def in_transformers(self, seconds: float) -> Agreement:
        """What the other folder of `of` said, held against the reference."""
        return agreement(self.asked, self.reference, _loaded(self.place / _OTHER), seconds)

    def in_llama_cpp(self, runtime: Runtime, model: Path, adapter: Path | None, say: Say) -> Agreement:
        """A GGUF file. Raises EngineError `verify.llama_cpp` with what the program said."""
        began, out = time.monotonic(), self.place / "llama.npz"
        reference = self.place / reference_name(self.asked)
        words = [str(self.place / _ASKED), str(reference), str(out), str(model)]
        words += [str(adapter)] if adapter is not None else []
        say(f"llama.cpp reads {model.name}", 0, 0)
        ended = subprocess.run(
            [runtime.python, str(_SCRIPT), *words],
            env=without_tokens(),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if ended.returncode:
            raise EngineError(
                "verify.llama_cpp",
                f"llama.cpp could not be asked with {model.name}.",
                cause=_last(ended.stderr) or f"It ended with code {ended.returncode}; memory may have run out.",
                next_step="Export without the comparison: --no-verify",
                exit_code=ExitCode.RUN_FAILED,
            )
        return agreement(self.asked, self.reference, _loaded(out), time.monotonic() - began)


def agreement(asked: Asked, reference: dict[str, Any], other: dict[str, Any], seconds: float) -> Agreement:
    """The figures of one comparison."""
    chats = range(len(asked.chats))
    largest = max((_largest(reference, other, n) for n in chats), default=0.0)
    same = [_same_tops(reference, other, n, largest) for n in chats]
    parted = [at for n in chats if (at := _parted(reference[f"answer/{n}"], other[f"answer/{n}"])) >= 0]
    ended = [n for n in chats if bool(reference[f"ended/{n}"])]
    both = [n for n in ended if bool(other[f"ended/{n}"])]
    missing, foreign = _wrong_ends(asked, reference, other)
    return Agreement(
        runtime=str(other["runtime"]),
        prompts=len(asked.chats),
        tokens_compared=sum(len(one) for one in same),
        same_top_token=float(np.concatenate(same).mean()) if same else 1.0,
        first_difference=min(parted, default=-1),
        largest_logit_difference=largest,
        perplexity=_perplexity(asked, other),
        reference_perplexity=_perplexity(asked, reference),
        perplexity_tokens=sum(len(reference[f"nll/{number}"]) for number in range(len(asked.passages))),
        same_tokens=all(_equal(reference, other, f"text/{n}") for n in range(len(asked.texts))),
        same_prompt=all(_equal(reference, other, f"prompt/{n}") for n in chats),
        stops=bool(ended) and len(both) == len(ended),
        ended=len(both),
        reference_ended=len(ended),
        missing_stops=missing,
        foreign_stops=foreign,
        seconds=seconds,
    )


def faults(found: Agreement, kind: str) -> tuple[str, ...]:
    """Why the file must not be used, in words; none where it may."""
    bad = []
    if not found.same_tokens:
        bad.append("its tokenizer cuts texts into other tokens")
    if not found.same_prompt:
        bad.append("its chat template gives other tokens")
    if found.missing_stops:
        bad.append(f"it runs on after the model's stop tokens {', '.join(map(str, found.missing_stops))}")
    if found.foreign_stops:
        bad.append(f"it ends answers at tokens {', '.join(map(str, found.foreign_stops))}, where the model goes on")
    figures = (found.perplexity, found.reference_perplexity, found.largest_logit_difference)
    if not all(math.isfinite(figure) for figure in figures):
        return (*bad, "its figures are not numbers")
    least, growth = BOUNDS.get(kind, (0.0, math.inf))
    if found.same_top_token < least:
        bad.append(f"it names the same next token in {found.same_top_token:.1%} of positions, below {least:.0%}")
    if found.perplexity_change > growth:
        bad.append(f"its perplexity is {found.perplexity_change:.1%} above the reference's, over {growth:.0%}")
    return tuple(bad)


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _largest(reference: dict[str, Any], other: dict[str, Any], number: int) -> float:
    one, two = (found[f"logits/{number}"] for found in (reference, other))  # (K, V)
    width = min(one.shape[-1], two.shape[-1])
    return float(np.abs(one[:, :width] - two[-len(one) :, :width]).max())


def _same_tops(reference: dict[str, Any], other: dict[str, Any], number: int, largest: float) -> Any:
    """(T) bool. Where logits are kept, a nearly equal second choice is the same."""
    one, two = reference[f"top/{number}"], other[f"top/{number}"]  # (T)
    same = one == two
    logits = reference[f"logits/{number}"]  # (K, V)
    first = len(one) - len(logits)
    for at in np.flatnonzero(~same):
        if at >= first and two[at] < logits.shape[-1]:
            row = logits[at - first]
            same[at] = row[one[at]] - row[two[at]] <= min(largest, _NEARLY * float(np.ptp(row)))
    return same


def _wrong_ends(asked: Asked, reference: dict[str, Any], other: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Stop tokens at which the other program does not end, and tokens of the reference's answers at which it does."""
    if "ends" not in other:
        return (), ()  # it is told the stop tokens
    ends, stops = set(other["ends"].tolist()), set(asked.stops)
    said = {int(token) for n in range(len(asked.chats)) for token in reference[f"answer/{n}"]}
    return tuple(sorted(stops - ends - set(asked.unnamed_stops))), tuple(sorted((ends - stops) & said))


def _parted(one: Any, two: Any) -> int:
    """The first place at which two answers differ; -1 for none."""
    length = min(len(one), len(two))
    differs = np.flatnonzero(one[:length] != two[:length])
    if len(differs):
        return int(differs[0])
    return -1 if len(one) == len(two) else length


def _perplexity(asked: Asked, found: dict[str, Any]) -> float:
    nats = [found[f"nll/{number}"] for number in range(len(asked.passages))]
    return float(np.exp(np.concatenate(nats).mean())) if nats else 0.0


def _equal(one: dict[str, Any], two: dict[str, Any], name: str) -> bool:
    return bool(np.array_equal(one[name], two[name]))


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────
def reference_name(asked: Asked) -> str:
    """Answers to other questions, which an earlier attempt may have left, are not these."""
    return f"reference-{hashlib.sha256(msgspec.json.encode(asked)).hexdigest()[:16]}.npz"


def _ask_transformers(spoken: Spoken, place: Path, answers: Path, other: Path | None, say: Say) -> None:
    words = [str(place / _ASKED), str(answers), "--model", str(spoken.folder)]
    words += ["--adapter", str(spoken.adapter)] if spoken.adapter is not None else []
    words += ["--other", str(other), str(place / _OTHER)] if other is not None else []

    def report(progress: Progress) -> None:
        say(progress.words, progress.done_bytes, progress.total_bytes)

    run_module("engine.evaluation.sayings", words, place / "transformers.log", "verifying", report, failing=_FAILING)


def _loaded(path: Path) -> dict[str, Any]:
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def _last(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
