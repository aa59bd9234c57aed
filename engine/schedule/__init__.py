"""What a job will do over its tokens: stages, learning rate, length, batch, mix.

Pure arithmetic, for screens and the worker alike.
"""
