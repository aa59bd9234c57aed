"""Below the line: the worker process that trains. The only place where torch and transformers are imported."""
