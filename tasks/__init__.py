"""Kinds of task: what is learned from a batch, and what a prediction is. One file per kind."""
