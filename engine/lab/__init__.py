"""Several approaches on one model, one data set and one budget, with seeds, and the report that compares them.

No torch: every arm is a run.
"""
