"""The command line, from the arguments to checked jobs and an exit code."""
