"""Functions on whole parameter trees that combine models after training."""
