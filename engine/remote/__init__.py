"""Runs on other machines: copied over ssh, started detached, tailed; job files for rented machines.

No torch.
"""
