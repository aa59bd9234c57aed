"""A model folder in the format of another program: GGUF, with the rotary scaling that llama.cpp's graph can carry.

numpy and the `gguf` package (extra `[gguf]`); never torch. Weights are read one at a time.
"""
