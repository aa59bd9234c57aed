"""Layers that are computed, not copied: predicted from their neighbours (LESA), or averaged after matching neurons.

Runs as a process of its own (`python -m engine.learned`) before the surgery and leaves the layers in one safetensors
file, at the source's widths. Must not know how layers are placed or what happens to them afterwards.
"""
