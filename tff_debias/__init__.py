"""Debiased personalized federated training in TensorFlow Federated."""
