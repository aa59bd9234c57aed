"""What only an accelerator can show: checks of the whole program, and measurements to hold estimates to."""
