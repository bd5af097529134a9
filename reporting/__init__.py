"""results.json in; page, card, figures and tables out. Computes nothing."""
