"""The section of a spec about the window: how far it is extended, by which method, and how length is trained.

Owns its fields, limits and one-line meanings. Must not know the other sections, nor what a method does
(`engine.context`).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from engine.jobs.spec_section import Section

WINDOWS = ("full", "pose", "mixed")
AUTO = "auto"
"""The method that is left to measuring."""
SEARCHED = ("longrope", "longrope2")
"""Methods whose factors come from a search; a file of them, or none yet."""


class ContextSection(Section, frozen=True, kw_only=True):
    """A longer window. Without `length` the model keeps the one it has."""

    length: Annotated[int, Meta(ge=0, le=1 << 26, description="Tokens of the new window; 0 keeps the present one.")] = 0
    method: Annotated[
        str,
        Meta(
            pattern="^[a-z][a-z0-9-]*$",
            description='"auto" measures every method that needs no search and that no program loses without an error, '
            "and takes the best; or one by name (scaler-wizard extend --help lists them).",
        ),
    ] = AUTO
    theta: Annotated[float, Meta(ge=0, description='New rotary base for method = "abf"; 0 chooses one.')] = 0.0
    factors: Annotated[
        str,
        Meta(description='File with searched factors (longrope, longrope2): extension.json or CSV; "" for none.'),
    ] = ""
    window: Annotated[
        str,
        Meta(
            pattern="^(full|pose|mixed)$",
            description="full: sequences of data.max_length; pose: short sequences with skipped positions, memory does "
            "not grow with the target; mixed: short ones with the old positions, long ones with the new, by turns.",
        ),
    ] = "full"
    train_length: Annotated[
        int,
        Meta(ge=0, description="pose, mixed: length of the short sequences; 0 means the model's original window."),
    ] = 0
    pose_chunks: Annotated[int, Meta(ge=2, le=16, description="pose: pieces with gaps between them.")] = 2
    short_share: Annotated[
        float, Meta(gt=0, lt=1, description="mixed: share of the steps' tokens that are short sequences.")
    ] = 0.4
    curriculum: Annotated[
        tuple[int, ...],
        Meta(
            description="full: lengths one after another, in equal parts of the steps: [4096, 16384]; [] is one length."
        ),
    ] = ()
    train_embeddings: Annotated[
        bool, Meta(description="Embeddings and head learn too (LongLoRA); costs their memory several times over.")
    ] = False
    train_norms: Annotated[bool, Meta(description="Norms learn too (LongLoRA); costs next to nothing.")] = True
    max_short_loss: Annotated[
        float,
        Meta(ge=0, description="Gate: stop when short text got worse by more than this share: 0.05 is 5 %; 0 never."),
    ] = 0.0

    @property
    def extends(self) -> bool:
        """Whether the window is to grow."""
        return self.length > 0
