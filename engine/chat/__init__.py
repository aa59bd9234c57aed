"""A model that is talked to: prompts in, tokens out, adapters changed under one base.

torch, in a process of its own that front ends speak with in JSON lines. Must not know screens or how a model was made.
"""
