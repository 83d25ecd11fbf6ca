"""The scans that `predict` and `segment` are given: found, assigned to channels, read, and written back."""
