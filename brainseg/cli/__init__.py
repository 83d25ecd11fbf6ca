"""From the command line to checked jobs and an exit code."""
