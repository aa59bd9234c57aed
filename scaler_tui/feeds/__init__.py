"""Threads that read slow things (journals, meters, probes) and post messages; they never touch a widget."""
