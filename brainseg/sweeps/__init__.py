"""Many jobs of one command: launch, outcome, summary."""
