"""Building blocks without dependencies on other folders: errors, files, seeds, signals."""
