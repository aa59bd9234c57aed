"""The certificate `extension.json`: how a window was made longer, and what was measured of the result.

Owns the file's types; it is written beside the weights and read by the check of the folder, by training, by `eval`
(the window before) and by the wizard. Must not know torch. Fields are only added, never renamed.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.context.plan import ContextPlan
from engine.context.portability import Portability
from engine.jobs.length_report import LengthReport
from engine.jobs.race_lines import RaceDecided, RaceRow, SearchDone

CERTIFICATE_NAME = "extension.json"
CERTIFICATE_VERSION = 1


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A section of the certificate."""


class FolderCheck(_Part, frozen=True, kw_only=True):
    """What was seen of the folder when plain `AutoModelForCausalLM` had loaded it."""

    modules: int
    """Rotary modules whose frequencies were compared with the method's formula; all agreed."""
    largest_error: float
    """Largest relative difference of an inverse frequency from the formula's."""
    boundary: int
    """The window before, tokens; generation was let across it."""
    generated: int = 0
    """Tokens, greedy, with KV cache."""
    cache_equal: bool | None = None
    """Whether generation with the cache equals recomputation of every step; None where it was not tried."""
    logit_difference: float = 0.0
    """Largest difference between the two."""
    reason: str = ""
    """The trap, where they differ; why it was not tried."""
    seconds: float = 0.0


class Race(_Part, frozen=True, kw_only=True):
    """The methods measured zero-shot on this model."""

    rows: tuple[RaceRow, ...]
    decided: RaceDecided | None = None
    """None where the method was named by the user."""
    seconds: float = 0.0


class Training(_Part, frozen=True, kw_only=True):
    """The run that taught the model its new length."""

    run: str
    window: str
    """ "full", "pose", "mixed"."""
    steps: int
    tokens: int
    seconds: float
    task: str = ""
    train_length: int = 0


class Certificate(_Part, frozen=True, kw_only=True):
    """`extension.json`."""

    version: int = CERTIFICATE_VERSION
    program: str = ""
    """ "scaler-wizard 0.1.0"."""
    versions: dict[str, str] = {}
    """Of the libraries it was measured with."""
    created: str = ""
    source: str
    plan: ContextPlan
    """Method, both windows, and every rotary embedding's divisors and factor on cos and sin."""
    links: str = "hard"
    """How weights got here: "hard" (linked, copied where that is impossible), "copy", "symbolic", "merged"."""
    race: Race | None = None
    search: SearchDone | None = None
    training: Training | None = None
    check: FolderCheck | None = None
    report: LengthReport | None = None
    portability: tuple[Portability, ...] = ()
    accepted_losses: tuple[str, ...] = ()
    """Consumers whose loss the user confirmed, by starting a run after being told of it too."""
    seconds: float = 0.0


def read_certificate(folder: Path) -> Certificate | None:
    """The certificate in a model folder; None when there is none. Raises msgspec.MsgspecError when damaged."""
    path = folder / CERTIFICATE_NAME
    if not path.is_file():
        return None
    return msgspec.json.decode(path.read_bytes(), type=Certificate)


def encode_certificate(certificate: Certificate) -> bytes:
    """The file's bytes, indented."""
    return msgspec.json.format(msgspec.json.encode(certificate), indent=1) + b"\n"
