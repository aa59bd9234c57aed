"""Specs, runs, journals, checkpoint folders, the detached runner. Knows nothing of torch or screens."""
