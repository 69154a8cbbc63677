"""One run of an experiment: its settings, data, training and files."""
