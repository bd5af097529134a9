"""Training: loop, jitted step, optimiser, schedules, checkpoints, and what is shown of a run."""
