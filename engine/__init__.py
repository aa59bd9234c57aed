"""The engine: everything Scaler Wizard knows and does, without any user interface.

Data flows one way: hardware + models + profiles -> answers -> matrix of estimates -> recommendation -> spec -> run.
`train` and `evaluation` may import torch; everything else never does (guarded by import-linter and a subprocess test).
"""

__version__ = "0.1.0"
