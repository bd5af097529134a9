"""Features of texts: extract, select, scale, transform."""
