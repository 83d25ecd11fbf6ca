"""An override taken apart: by whatever sign it is typed, however often, with whatever in its value."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainseg.config.overrides import (
    setting_of,
    short_name,
    value_of,
    values_by_setting,
    without_settings,
)


@pytest.mark.parametrize(
    ("override", "setting", "value"),
    [
        ("model.depth=4", "model.depth", "4"),
        ("+loss.options.a=b=c", "loss.options.a", "b=c"),
        ("++x=", "x", ""),
        ("~augment", "augment", ""),
        ("data.path=a b=1.h5", "data.path", "a b=1.h5"),
        ("", "", ""),
    ],
)
def test_the_first_sign_parts_setting_and_value(override: str, setting: str, value: str) -> None:
    assert (setting_of(override), value_of(override)) == (setting, value)


NAMES = st.sampled_from(["from", "epochs", "model.depth", "seed"])


@given(st.lists(st.tuples(st.sampled_from(["", "+", "++"]), NAMES, st.text(max_size=5))))
def test_the_last_of_a_setting_counts_and_those_left_out_are_gone(
    typed: list[tuple[str, str, str]],
) -> None:
    overrides = [f"{sign}{name}={value}" for sign, name, value in typed]
    assert values_by_setting(overrides) == {name: value for _, name, value in typed}
    assert values_by_setting(without_settings(overrides, ("from", "seed"))) == {
        name: value for _, name, value in typed if name not in ("from", "seed")
    }


@pytest.mark.parametrize(
    ("name", "among", "shown"),
    [
        ("model.depth", ["model.depth", "seed"], "depth"),
        ("loss.name", ["loss.name", "model.depth"], "loss"),
        ("optimizer.weight", ["optimizer.weight", "loss.weight"], "optimizer.weight"),
        ("loss.name", ["loss.name", "loss"], "loss.name"),
        ("seed", ["seed"], "seed"),
    ],
)
def test_a_setting_is_shortened_as_long_as_no_other_is_called_the_same(
    name: str, among: list[str], shown: str
) -> None:
    assert short_name(name, among) == shown
