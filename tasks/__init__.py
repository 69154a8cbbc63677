"""Simulation binaries and the tasks that they run."""
