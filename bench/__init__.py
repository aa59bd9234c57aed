"""The benchmarks behind the figures in the README. Each prints ratios against a peer measured in the same run."""
