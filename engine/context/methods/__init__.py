"""The scaling methods, one module per family of formulas, and their registry."""
