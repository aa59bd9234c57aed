"""Large text as training data: read as streams, checked, tokenised once into memory-mapped shards, mixed by weight.

No torch.
"""
