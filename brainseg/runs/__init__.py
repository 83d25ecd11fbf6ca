"""One run on disk: its folder, identity, checkpoint, resume and callbacks."""
