"""A job's step tried before the job: on fake tensors (dry run), or for a minute on the real device (probe).

Below the torch line, always in a process of its own. Nothing here decides; it measures and answers.
"""
