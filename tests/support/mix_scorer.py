"""Stands in for `scaler-wizard` where a screen starts a scoring process: speaks its lines, without a model.

The loss of weights is 2 plus their squared distance from 0.6, 0.3, 0, ...; what is no sum costs 0.05 more. A sweep
measures four sets. `adapters list`, `inspect` and `mix` are the real command's.
"""

from __future__ import annotations

import os
import signal
import sys

import msgspec

from engine.jobs.mix_lines import AskedMix, Measured, Scored, Scorer, SweepReport, Tried
from engine.jobs.spec_mix import MixMethod, MixSection

BEST = (0.6, 0.3)


def loss_of(weights: tuple[float, ...], mix: MixSection = MixSection()) -> float:  # noqa: B008
    """The figure that is told."""
    goal = (*BEST, *(0.0 for _ in weights))
    base = 2.0 if mix.method is MixMethod.EXACT else 2.05
    return base + sum((weight - best) ** 2 for weight, best in zip(weights, goal, strict=False))


def say(line: object) -> None:
    """One line, at once."""
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.flush()


def score(count: int) -> None:
    """Answer wishes."""
    names = tuple("abcdefgh"[:count])
    say(Scorer(adapters=names, rows=44, tokens=310, data="/x/heldout.jsonl", device="cpu", seconds=0.1))
    for line in sys.stdin.buffer:
        wish = msgspec.json.decode(line, type=AskedMix)
        say(Scored(id=wish.id, weights=wish.weights, loss=loss_of(wish.weights, wish.mix), seconds=0.01))


def sweep(count: int) -> None:
    """Four sets and a report."""
    zeros = (0.0,) * count
    best = (*BEST, *zeros)[:count]
    for number, weights in enumerate((zeros, (1.0, *zeros[1:]), (0.5,) * count, best), 1):
        say(
            Tried(
                number=number, total=4, what="spread", weights=weights, loss=loss_of(weights), best=weights,
                best_loss=loss_of(weights), eta_seconds=1.0,
            )
        )  # fmt: skip
        if os.environ.get("SWEEP_WAITS"):
            signal.pause()

    def told(weights: tuple[float, ...]) -> Measured:
        return Measured(weights=weights, loss=loss_of(weights), check_loss=loss_of(weights) + 0.01)

    alone = tuple(told(tuple(float(i == j) for j in range(count))) for i in range(count))
    say(
        SweepReport(
            adapters=tuple("abcdefgh"[:count]), method="exact", base=told(zeros), alone=alone,
            equal=told((0.5,) * count),
            best=told(best), tries=4, rows=44, tokens=310, check_rows=43, check_tokens=300, data="x", seconds=1.0,
        )
    )  # fmt: skip


def main(words: list[str]) -> None:
    """`adapters score|sweep FOLDER ... --flags`."""
    if "--data" in words and words[words.index("--data") + 1].endswith("refused.jsonl"):
        error = {
            "code": "data.no_rows",
            "what": "refused.jsonl has no usable row.",
            "cause": "",
            "next_step": "Fix it.",
        }
        sys.stdout.write(msgspec.json.encode({"error": error}).decode() + "\n")
        sys.exit(2)
    count = next(n for n, word in enumerate(words[2:]) if word.startswith("--"))
    (score if words[1] == "score" else sweep)(count)


if __name__ == "__main__":
    main(sys.argv[1:])
