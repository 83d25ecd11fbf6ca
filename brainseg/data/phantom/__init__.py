"""Synthetic patients, for trials of the package without data."""
