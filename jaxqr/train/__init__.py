"""Training: pure steps, where batches come from, checkpoints, and the one loop."""
