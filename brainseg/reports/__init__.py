"""Scores, tables, figures and the viewer of a run, an evaluation or a comparison."""
