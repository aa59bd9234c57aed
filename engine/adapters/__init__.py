"""Adapters in peft's form as updates of matrices: read, mixed, folded into weights, tensor by tensor.

numpy, never torch: whatever the size of the base, memory holds a few matrices.
"""
