"""The tests, as a package of their own: a library in the environment ships another `tests`."""
