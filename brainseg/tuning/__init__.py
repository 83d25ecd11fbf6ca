"""Search for good settings with Optuna: search space, study, report."""
