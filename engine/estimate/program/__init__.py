"""A decoder layer and an output head as programs for the tape, following transformers' modelling code line by line.

One module per part: style (what varies by job), norms, projections, attention, decoder (feed-forward and whole layers),
head. Sources: transformers 5.23 `models/*/modeling_*.py`, peft 0.21 `lora/layer.py`, `lora/bnb.py`, bitsandbytes 0.50,
torch 2.13 `derivatives.yaml`. They must not know machines or totals.
"""
