"""One module or folder per --mode, and all that runs other runs."""
