"""Comparison of runs on the same patients: table, paired tests, figures, report, MLflow run."""
