"""Inference, metrics and statistics over whole patients."""
