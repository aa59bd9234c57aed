"""The headless subcommands. Each takes the parsed arguments and returns an exit code; none imports Textual."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from scaler_tui.commands import (
    adapters,
    cards,
    chat,
    corpus,
    estimate,
    evaluate,
    expand,
    export,
    extend,
    lab,
    look,
    mix,
    prices,
    schedule,
    scores,
    verify,
    work,
)

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "doctor": look.doctor,
    "inspect": look.inspect,
    "matrix": look.matrix,
    "plan": look.plan,
    "estimate": estimate.estimate,
    "expand": expand.expand,
    "extend": extend.extend,
    "export": export.export,
    "eval": evaluate.evaluate,
    "verify": verify.verify,
    "mix": mix.mix,
    "adapters": adapters.adapters,
    "corpus": corpus.corpus,
    "lab": lab.lab,
    "schedule": schedule.schedule,
    "prices": prices.prices,
    "scores": scores.scores,
    "data": look.data_check,
    "demo": work.demo,
    "run": work.run,
    "start": work.start,
    "runs": work.runs,
    "logs": work.logs,
    "pause": work.control,
    "checkpoint": work.control,
    "stop": work.control,
    "resume": work.resume,
    "card": cards.card,
    "chat": chat.chat,
    "merge": cards.merge,
}
