"""The commands, each with its purpose in a few words. Each one is a module of the same name on the top level."""

COMMANDS = {
    "train": "train a model, or a sweep of them with -m",
    "search": "search good settings, trial by trial",
    "prepare": "turn a folder of slices into one HDF5 file",
    "evaluate": "score a checkpoint",
    "predict": "segment scans: TIFF, NIfTI, DICOM",
    "compare": "compare runs on the same patients, or pool a cross-validation",
    "export": "write a network as ONNX or pt2, for programs without brainseg",
    "register": "give a run's checkpoint a name and an alias in MLflow's model registry",
    "sync": "bring MLflow up to date with run folders",
    "completion": "print what lets bash, zsh or fish complete settings with the Tab key",
}
