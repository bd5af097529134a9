"""Built-in corpora, one TFDS builder a file; `preparation.prepare` calls them by name."""
