"""Front ends of Scaler Wizard: the Textual app, the numbered prompts, the subcommands. No torch, no arithmetic."""
