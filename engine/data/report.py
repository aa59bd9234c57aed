"""The data report for front ends: look at a file with a model's tokenizer, before any run exists.

Owns `check`; the types are in `engine.data.summary`. Must not know how a report is shown.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.data.load import DEMO, survey
from engine.data.summary import DataReport
from engine.jobs.spec import DataSection

__all__ = ["DataReport", "check"]


def check(train: str, model_dir: Path, section: DataSection) -> DataReport:
    """The report about `train` with the tokenizer in `model_dir` and the section's lengths and masks.

    Held-out rows are compared when the section names a file of them; the demo's are not, unless `train` is the demo.
    Base text is not read. Raises EngineError for everything that would refuse to start.
    """
    unrelated = section.heldout == DEMO and train != DEMO
    changes = {"heldout": "", "heldout_fraction": 0.0} if unrelated else {}
    return survey(msgspec.structs.replace(section, train=train, **changes), model_dir)
