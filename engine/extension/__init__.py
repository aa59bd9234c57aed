"""Context scaling, carried out: the extended folder, written whole or not at all. Never imports torch."""
