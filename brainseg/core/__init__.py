"""Errors, files, seeds, signals: what every other part may use."""
