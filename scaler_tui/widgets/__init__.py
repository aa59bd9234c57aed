"""Widgets that draw one thing and know nothing of runs or files."""
