"""The surgery: recipes carried out on files, streamed in bounded memory. numpy, never torch."""
