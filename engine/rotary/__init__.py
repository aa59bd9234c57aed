"""Rotary embeddings of loaded models: set, asserted, raced against each other, searched. Below the torch line."""
