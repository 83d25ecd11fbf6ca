"""Runs compared: tables, tests, figures, report."""
