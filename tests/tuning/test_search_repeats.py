"""A search counts what it tries once: a proposal that was tried before is replaced by another one."""

from pathlib import Path

import pytest

from brainseg.config import SearchConfig
from brainseg.tuning import search_space
from brainseg.tuning.study import Study, UntriedCombinations

pytestmark = pytest.mark.usefixtures("empty_folder")
SMALL = search_space.distributions(
    {
        "model.depth": {"choices": [2, 3]},
        "model.width": {"low": 8, "high": 16, "step": 4, "log": False},
    }
)


def begun(study: Study, config: SearchConfig, value: float | None = 0.5) -> tuple[str, ...] | None:
    """Begin a trial, end it, and return its settings as they are typed; None where no trial is left."""
    trial = study.begin(config, SMALL)
    if trial is None:
        return None
    if value is None:
        study.end(trial, "FAIL", "it broke")
    else:
        study.optuna.tell(trial, value)
        study.locks.release_trial(trial.number)
    return tuple(search_space.to_overrides(trial.params))


@pytest.mark.parametrize("random_trials", [1, 10])
def test_six_combinations_are_six_trials_and_then_the_search_ends(
    random_trials: int, capsys
) -> None:
    study, config = (
        Study(Path("runs/search/s.db"), {}),
        SearchConfig(trials=9, random_trials=random_trials),
    )
    tried = [begun(study, config, None if number == 2 else 0.5) for number in range(6)]
    assert len(set(tried)) == 6 and study.count() == 6
    assert begun(study, config) is None and study.count() == 6
    assert "all 6 combinations of the space were tried or are running" in capsys.readouterr().out
    assert len(study.ended_trials()) == 6, "proposals that were tried before are in no table"


def test_a_number_is_the_same_if_it_is_typed_the_same() -> None:
    """Runs are given four digits of a proposed number."""
    rates = search_space.distributions(
        {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True, "step": None}}
    )
    untried = UntriedCombinations(rates, [{"optimizer.lr": 0.00123412}])
    assert untried.has_tried({"optimizer.lr": 0.00123409}) and not untried.has_tried(
        {"optimizer.lr": 0.001235}
    )
    drawn = untried.draw(0)
    assert drawn is not None and not untried.has_tried(drawn)


@pytest.mark.parametrize("step", [None, 0.00005])
def test_a_narrow_range_ends_when_no_run_is_left(step: float | None) -> None:
    """0.999 to 0.9999 has ten numbers of four digits, although it is continuous."""
    decays = search_space.distributions(
        {"ema_decay": {"low": 0.999, "high": 0.9999, "log": False, "step": step}}
    )
    tried: list[dict] = []
    while (drawn := UntriedCombinations(decays, tried).draw(len(tried))) is not None:
        tried.append(drawn)
    typed = {tuple(search_space.to_overrides(params)) for params in tried}
    assert len(typed) == len(tried) == 10
