"""PoSE: short sequences whose positions skip, so that a model sees distances up to the target without long sequences.

Owns the positions and the proof that attention reaches across a skip. Must not know the loop. Method: Zhu et al., PoSE,
arXiv 2309.10400; text stays as it is, only its positions are spread.

    tokens     a b c d | e f g h      n = 8 tokens in N = 2 pieces
    positions  0 1 2 3 | 9 10 11 12   the second piece moved on by u = 5, 0 <= u <= L' - n

transformers takes any step in positions other than 1 for the border of a packed row and lets no token look across it,
without a word, *unless* the call has an attention mask. PoSE is therefore never packed and always given a mask.
"""

from __future__ import annotations

import random

import torch

from engine.errors import EngineError, ExitCode
from engine.evaluation.head import Wanted
from engine.evaluation.model import LoadedModel

CHECK_TOKENS = 8
"""Of the check's sequence, half of them after the skip."""


def skipped_positions(length: int, target: int, chunks: int, generator: random.Random) -> tuple[int, ...]:
    """Positions of `length` tokens: from 0, rising, at most target - 1.

    The text is cut into `chunks` pieces at places drawn uniformly; piece i is moved on by u_i, where u_0 = 0 and the
    others are drawn uniformly from 0 to target - length, and sorted.
    """
    pieces = min(chunks, length)
    borders = [0, *sorted(generator.sample(range(1, length), pieces - 1)), length]
    room = max(target - length, 0)
    skips = [0, *sorted(generator.randint(0, room) for _ in range(pieces - 1))]
    return tuple(
        token + skip
        for skip, first, end in zip(skips, borders[:-1], borders[1:], strict=True)
        for token in range(first, end)
    )


def check_attention_reaches_across(loaded: LoadedModel, target: int) -> None:
    """Once before the first step: another first token must change what the model says after a skip.

    Raises EngineError `train.pose_pieces_apart`: pieces that cannot see each other would train nothing about length.
    """
    half = CHECK_TOKENS // 2
    skip = max(target - CHECK_TOKENS, half)
    positions = [*range(half), *range(skip + half, skip + CHECK_TOKENS)]
    some = torch.arange(CHECK_TOKENS) + 3
    other = some.clone()
    other[0] = CHECK_TOKENS + 3
    after = torch.arange(half, CHECK_TOKENS, device=loaded.device)
    logits = []
    with loaded.inference(), loaded.autocast():
        for ids in (some, other):
            wanted = Wanted(
                (ids % loaded.vocab_size)[None].to(loaded.device),
                torch.tensor([positions], device=loaded.device),
                after,
                torch.ones(1, CHECK_TOKENS, dtype=torch.long, device=loaded.device),
            )
            logits.append(loaded.head.logits_of(loaded.model, wanted).float())
    if bool((logits[0] == logits[1]).all()):
        raise EngineError(
            "train.pose_pieces_apart",
            'window = "pose" would train nothing here: tokens after a skip in positions cannot see those before it.',
            cause="The installed transformers takes the skip for the border of a packed row although a mask is given.",
            next_step='Set context.window = "full" or "mixed", or install another version of transformers.',
            exit_code=ExitCode.RUN_FAILED,
        )
