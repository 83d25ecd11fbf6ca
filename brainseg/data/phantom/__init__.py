"""Synthetic patients, with which everything can be tried without data."""
