"""--mode=export: what other programs load."""
