"""Training data: formats, templates, masks, packing and the report about every row. No torch."""
