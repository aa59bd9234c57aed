"""Where a model comes from and what its architecture is, from `config.json` and safetensors headers. No torch."""
