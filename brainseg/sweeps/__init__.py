"""Sweeps: launching the jobs of one command, their outcomes and the summary table."""
