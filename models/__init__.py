"""Models: architectures, heads and readers of pretrained checkpoints. Knows nothing of tasks."""
