"""Speed and cost beside peers: each module is a command that prints a table."""
