"""Identifies the data of a run, so that a resume can refuse other data.

Owns the hash. Must not know torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from engine.data.rows import EncodedRow


def rows_sha256(parts: Sequence[Sequence[EncodedRow]]) -> str:
    """Identifies what is trained and measured on: the tokens and masks of all parts, in order.

    Over tokens and not over files, so that a changed tokenizer or template counts as changed data.
    """
    digest = hashlib.sha256()
    for rows in parts:
        digest.update(len(rows).to_bytes(8, "little"))
        for row in rows:
            digest.update(len(row.input_ids).to_bytes(8, "little"))
            digest.update(b"".join(token.to_bytes(4, "little") for token in row.input_ids))
            digest.update(bytes(row.trained))
    return digest.hexdigest()
