"""Settings of brainseg.search."""

from dataclasses import dataclass

from brainseg.config.fields import check_choice, check_range, setting
from brainseg.core.errors import check
from brainseg.core.uris import contains_password, split_uri


def check_storage(storage: str) -> None:
    """Raise RequestError unless a study can be stored there. Nothing is opened."""
    rule = "must be sqlite, journal:FILE or postgresql://USER@HOST/DATABASE"
    parts = split_uri("storage", storage, rule)
    has_password, hidden = contains_password(parts), f"{parts.scheme}://..."
    is_complete = (
        storage == "sqlite"
        or (storage.startswith("journal:") and len(storage) > len("journal:"))
        or (storage.startswith("postgresql://") and len(parts.path) > 1)
    )
    check(is_complete, "storage", hidden if has_password else storage, rule)
    check(
        not has_password,
        "storage",
        hidden,
        "must not contain a password, which other users of this machine could read",
        "write it to the password file of PostgreSQL, ~/.pgpass or PGPASSFILE",
    )


@dataclass
class SearchConfig:
    """Settings of `brainseg.search`.

    All other overrides are passed to `TrainConfig`, so the two may have no field name in common.
    """

    study: str | None = setting(None, "name of the Optuna study; null: the name of the space")
    space: str | None = setting(
        None,
        "search space: a file of conf/search or your own YAML file; null: the space given by "
        "overrides, or quick",
    )
    storage: str = setting(
        "sqlite",
        "where the study is kept: sqlite (runs/search/STUDY.db), journal:FILE on a disk that "
        "several machines share, or postgresql://USER@HOST/DATABASE",
    )
    workers: int = setting(
        1,
        "number of processes that share the trials; with hydra/launcher=submitit_slurm each is a "
        "job of the cluster",
    )
    trials: int = setting(20, "total number of trials of the study, over all starts and processes")
    hours: float | None = setting(
        None, "hours after which this command begins no further trial; null: no limit"
    )
    random_trials: int = setting(
        10, "number of random trials before TPE proposes settings from earlier results"
    )
    # The sampler has a seed of its own, because `seed` is the seed of the runs.
    sampler_seed: int = setting(
        0, "random seed of the proposals; independent of seed, which is used by the runs"
    )
    prune: str = setting(
        "median",
        "median: stop a trial whose val/dice stays below the median of the others at the same "
        "epoch; none: no pruning",
    )
    prune_after: int = setting(5, "number of finished trials before pruning starts")
    # The first epochs say little about the final score.
    prune_warmup: int = setting(
        3,
        "epochs, or tenths of the run with max_minutes or max_steps, before a trial can be pruned",
    )

    def __post_init__(self) -> None:
        is_plain = self.study is None or (
            self.study.isascii() and self.study.replace("-", "").replace("_", "").isalnum()
        )
        rule = "is part of file names, so only letters, digits, - and _ are allowed"
        check(is_plain, "study", self.study, rule)
        check_storage(self.storage)
        check_range("workers", self.workers, 1, 1024)
        check_range("trials", self.trials, 1)
        check_range("hours", self.hours, 0)
        check_range("random_trials", self.random_trials, 1)
        check_range("sampler_seed", self.sampler_seed, 0, 2**32 - 1)
        check_choice("prune", self.prune, ("median", "none"))
        check_range("prune_after", self.prune_after, 1)
        check_range("prune_warmup", self.prune_warmup, 1)
