"""Subjects of scripts/benchmark.py: steps, epoch, inference, process, growth, and the report."""
