"""Mirrors of run folders in MLflow."""
