"""What `tasks.benchmark` measures, and against what."""
