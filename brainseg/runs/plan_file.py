"""The plans of a time budget in the file plan.json of a run folder.

Commands that only ask whether a run is finished need them, too, so that torch is not imported here.
"""

import json

from brainseg.core.errors import DataError
from brainseg.runs.run_folder import RunFolder
from brainseg.training.plan import Plan, restore_plans


def read_plans(folder: RunFolder) -> list[Plan]:
    """Return the plans in plan.json, none if there is no such file. Raises DataError."""
    try:
        return (
            restore_plans({"plans": json.loads(folder.plan.read_text())})
            if folder.plan.is_file()
            else []
        )
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{folder.plan}: not what a run writes ({error}); "
            "remove the file to have the steps measured again"
        ) from error
