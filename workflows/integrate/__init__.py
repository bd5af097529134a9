"""--mode=integrate: candidates of a run, judged and written."""
