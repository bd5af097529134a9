"""What shapes the training: optimisers and schedules."""
