"""Learning from a teacher: its losses, its logits on disk, its tokenizer, the student's own answers.

torch. Must not know runs, journals or the Trainer: `engine.train` asks.
"""
