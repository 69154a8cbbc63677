"""The cases of `tasks.benchmark`, and how they are timed."""
