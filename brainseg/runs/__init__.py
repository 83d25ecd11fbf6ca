"""The files of a run: folder, identity, checkpoints, resume and callbacks."""
