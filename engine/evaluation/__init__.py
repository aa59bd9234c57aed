"""Below the line: losses, exact match, perplexity and samples of a loaded model."""
