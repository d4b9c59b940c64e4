"""Trackers of others that a run is told to: Weights & Biases, MLflow."""
