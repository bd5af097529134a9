"""Files to a prepared data set, once per corpus; no tokeniser and no model."""
