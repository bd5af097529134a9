"""From a model and a split to numbers with error bars, a baseline beside them, and a report."""
