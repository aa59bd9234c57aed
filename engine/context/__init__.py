"""Context scaling, planned: rotary methods, the new config, who can read it. Pure Python, above the torch line."""
