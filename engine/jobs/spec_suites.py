"""The sections of a spec about noticing what was lost: texts whose perplexity is followed, and how much may be lost.

Owns their fields, limits and one-line meanings. Must not know how anything is measured (`engine.evaluation`).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from engine.jobs.spec_section import Section
from engine.jobs.spec_stream import NAME_PATTERN


class SuiteSection(Section, frozen=True, kw_only=True):
    """A text that the model is measured on before, during and after; every source has one of its own beside these."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN, description="As curves and reports call it.")]
    path: Annotated[
        str,
        Meta(
            min_length=1,
            description='"general" (plain English that ships with the program), "demo", a file or a folder of text.',
        ),
    ]
    field: Annotated[str, Meta(min_length=1, description="Key or column that holds a document's text.")] = "text"
    max_tokens: Annotated[int, Meta(ge=64, description="At most so many tokens are evaluated.")] = 32_768


class RetentionSection(Section, frozen=True, kw_only=True):
    """A limit on what may be lost against the parent model."""

    on: Annotated[
        str,
        Meta(
            min_length=1,
            description="A benchmark of evaluation.tasks that is a share of right answers, a suite, a source, or "
            "base_text.",
        ),
    ]
    most_lost: Annotated[
        float,
        Meta(
            ge=0.0,
            description="Accuracy points lost as a fraction (0.05 is five points); of texts the relative rise of bits "
            "per byte. Only a loss that is significant counts.",
        ),
    ] = 0.05
    action: Annotated[
        str,
        Meta(
            pattern="^(stop|hold)$",
            description="stop ends the run at the last checkpoint that kept it; hold finishes, but the result is not "
            "promoted to output/.",
        ),
    ] = "stop"
