"""What a cache says of the tokens it left out is what the teacher said, at any temperature, however they are spread."""

from __future__ import annotations

import math

import pytest

pytestmark = pytest.mark.slow
VOCABULARY, K, LIKELY = 150_000, 64, 200


@pytest.mark.parametrize("temperature", [0.6, 0.8, 3.0, 5.0, 8.0, 11.0])
def test_the_missing_mass_is_right_for_peaked_and_for_two_groups_of_tokens(temperature: float) -> None:
    import torch

    from engine.distill.knowledge import LEAST_MASS
    from engine.distill.tail import at_temperature, powers_of_the_rest

    torch.manual_seed(0)
    logits = torch.stack(
        [
            *(torch.full((VOCABULARY,), -float(apart)) for apart in (12, 25, 40, 80)),
            torch.randn(VOCABULARY) * 3,
            -1.2 * torch.arange(1, VOCABULARY + 1).log(),
            torch.zeros(VOCABULARY),
        ]
    )
    logits[:4, :LIKELY] = 0
    logits[4, 0] = 20  # one token is almost certain
    log_probs = torch.log_softmax(logits, -1)
    kept, ids = log_probs.topk(K, -1)
    rest = powers_of_the_rest(log_probs, ids)
    found, missing = at_temperature(kept.half(), rest, VOCABULARY - K, temperature)
    exact = torch.log_softmax(logits.double() / temperature, -1)
    left = exact.scatter(-1, ids, float("-inf")).logsumexp(-1)
    assert (missing - left.clamp_min(math.log(LEAST_MASS))).abs().max() < 0.03
    rounding = 1e-3 * kept.abs().max() / temperature
    assert (found - exact.gather(-1, ids)).abs().max() < 0.03 + rounding
    assert torch.logaddexp(found.logsumexp(-1), missing).abs().max() < 1e-4
