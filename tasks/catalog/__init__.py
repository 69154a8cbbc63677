"""The tasks by name: one module each, with a function `load`."""
