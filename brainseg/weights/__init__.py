"""Trained networks that come with the package, each as NAME.pt with its model card NAME.md."""

from pathlib import Path

# The network of a request that names no checkpoint.
DEFAULT = "lgg"


def packaged_file(name: str) -> Path | None:
    """Return the checkpoint of the trained network `name` of this package, or None."""
    # A name with a separator could lead out of this folder.
    if not name.isidentifier():
        return None
    file = Path(__file__).with_name(f"{name}.pt")
    return file if file.is_file() else None


def model_card(checkpoint: Path) -> Path:
    """Return the model card that belongs to a checkpoint of this package."""
    return checkpoint.with_suffix(".md")
