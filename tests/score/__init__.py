"""Holds the formula against published measurements: rows in, errors and reasons out."""
