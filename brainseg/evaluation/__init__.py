"""A model on whole patients: inference, metrics, statistics."""
