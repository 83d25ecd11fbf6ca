"""Scores, tables, figures and the viewer."""
