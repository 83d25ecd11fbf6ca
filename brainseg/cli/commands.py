"""The commands and their purposes. A command is the module `brainseg.COMMAND`."""

COMMANDS = {
    "train": "train a model, or a sweep of them with -m",
    "search": "search for good settings, trial by trial",
    "prepare": "turn a folder of slices into one HDF5 file",
    "evaluate": "score a checkpoint",
    "verify": "check that a run still gives the scores that it stored",
    "predict": "segment scans: TIFF, NIfTI, DICOM",
    "compare": "compare runs on the same patients, or pool a cross-validation",
    "runs": "list runs with their state and scores",
    "export": "write a network as ONNX or pt2, for programs without brainseg",
    "register": "give a run's checkpoint a name and an alias in MLflow's model registry",
    "ui": "open the MLflow page of your runs",
    "sync": "bring MLflow up to date with run folders",
    "completion": "print a script with which bash, zsh or fish complete settings on the Tab key",
}


def module_of(command: str) -> str:
    """Return the module whose `main` runs the command."""
    # The package of this name holds the files of a run, and is a command by its module __main__.
    return "brainseg.runs.__main__" if command == "runs" else f"brainseg.{command}"
