"""A model folder in the format of another program, verified: GGUF and what is made of it, plain folders, Ollama.

numpy and the `gguf` package; never torch. Weights are read one at a time.
"""
