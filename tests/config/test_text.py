"""Text settings: what is typed is what is stored, whatever signs it holds; Hydra's own parser reads the result."""

import os

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from signs import IN_NAMES, PRINTABLE

from brainseg.config.text import format_for_shell, quote_text_values, text_of, text_settings
from brainseg.core.errors import RequestError


def read(override: str, command: str = "predict", sweeps: bool = False) -> object:
    """Return the value that Hydra reads from an override after it was put in quotes, which must be so done once."""
    (quoted,) = quote_text_values(command, [override], sweeps)
    assert quote_text_values(command, [quoted], sweeps) == [quoted]
    parsed = OverridesParser.create().parse_override(quoted)
    if not parsed.is_sweep_override():
        return parsed.value()
    jobs = [
        OverridesParser.create().parse_override(f"x={value}")
        for value in parsed.sweep_string_iterator()
    ]
    return tuple(job.value() for job in jobs)


@pytest.mark.parametrize("sign", [sign for sign in IN_NAMES if sign != ","])
@pytest.mark.parametrize("name", ["output", "data.channel", "checkpoint", "sequences.FLAIR"])
def test_every_sign_is_taken_as_typed(name: str, sign: str) -> None:
    assert read(f"{name}=a{sign}b/c") == f"a{sign}b/c"
    assert read(f"{name}=a{sign}") == f"a{sign}"
    if sign not in ("'", '"', "~", "\\"):
        assert read(f"{name}={sign}b") == f"{sign}b"


@pytest.mark.parametrize(
    "text",
    [
        "2024_01_15",
        "1.10",
        "007",
        "1e3",
        "true",
        "FALSE",
        "inf",
        "nan",
        "0x10",
        "-1",
        "+1",
        "1_000",
        "3",
    ],
)
def test_text_that_looks_like_a_number_or_a_truth_value_stays_text(text: str) -> None:
    assert read(f"output={text}") == text
    assert read(f"name={text}", "register") == text
    assert read(f"sequences.FLAIR={text}") == text
    assert read(f"++sequences.FLAIR={text}") == text
    assert read(f"sequences={{FLAIR:{text}, T1: {text}}}") == {"FLAIR": text, "T1": text}
    assert read(f"input=[{text},b]") == [text, "b"]
    assert read(f"parts=[{text}]", "evaluate") == [text]
    assert read(f"output={text},b", "train", sweeps=True) == (text, "b")
    assert read(f"output=choice({text},b)", "train", sweeps=True) == (text, "b")


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("null", None),
        ("'null'", "null"),
        ('"1.10"', "1.10"),
        ("'it\\'s'", "it's"),
        ('"a,b"', "a,b"),
        ("a\\,b", "a,b"),
        ("", ""),
        (" x ", " x "),
        ("${model.name}", "${model.name}"),
        ("größe/${model.name}", "größe/${model.name}"),
        ("it's", "it's"),
        ("~/x", f"{os.path.expanduser('~')}/x"),
        ("~", os.path.expanduser("~")),
        ("'~/x'", "~/x"),
        ("a~/x", "a~/x"),
        ("~user/x", "~user/x"),
        ("runs:/0a1b", "runs:/0a1b"),
        ("models:/lgg@best", "models:/lgg@best"),
        ("[pre scan.nii.gz,flair.nii.gz]", ["pre scan.nii.gz", "flair.nii.gz"]),
        ("[ a , null,'b,c', ~/d ]", ["a", None, "b,c", f"{os.path.expanduser('~')}/d"]),
        ("[]", []),
        ("[1] scan.nii", "[1] scan.nii"),
    ],
)
def test_quotes_null_references_and_lists_keep_their_meaning(typed: str, value: object) -> None:
    assert read(f"input={typed}") == value


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20))
def test_what_a_remedy_says_to_type_is_read_as_the_text(text: str) -> None:
    import shlex

    (word,) = shlex.split(format_for_shell("output", text))
    assert read(word) == text
    assert text_of(word.removeprefix("output=")) == text


@given(st.text(st.sampled_from([*PRINTABLE, "ö"]), min_size=1, max_size=12))
def test_any_text_is_read_as_typed_or_refused_with_what_to_type(text: str) -> None:
    """Quotes, `null`, a leading ~/, references, escapes and Hydra's functions mean something else than themselves."""
    special = (
        text[0] in "\"'~"
        or "\\" in text
        or "${" in text
        or text.lower().strip() == "null"
        or "(" in text
    )
    try:
        value = read(f"output={text}")
    except RequestError as error:
        assert "," in text or text.strip()[0] in "[{"
        assert format_for_shell("output", text_of(text)) in str(error)
    else:
        assert special or value == text


def test_a_comma_is_refused_with_what_to_type_where_nothing_is_swept() -> None:
    with pytest.raises(
        RequestError,
        match=r"^output=a,b: several values; for a sweep put -m first, .* 'output=\"a,b\"'$",
    ):
        quote_text_values("train", ["output=a,b"])
    with pytest.raises(
        RequestError, match=r"for a list write 'input=\[a,b c\]', .* 'input=\"a,b c\"'$"
    ):
        quote_text_values("predict", ["input=a,b c"])
    with pytest.raises(
        RequestError,
        match=r"^output=\[a\]: must be a single text, not a list; .* 'output=\"\[a\]\"'$",
    ):
        quote_text_values("train", ["output=[a]"])
    with pytest.raises(RequestError, match="a value is missing beside a comma"):
        quote_text_values("train", ["loss.name=dice,"], sweeps=True)


def test_only_settings_that_hold_text_are_touched() -> None:
    others = [
        "epochs=2024_01_15",
        "loss.options.act=1.10",
        "seed=0,1",
        "optimizer=adam,sgd",
        "~augment",
        "hydra.launcher.n_jobs=2",
        "x",
    ]
    assert quote_text_values("train", others) == others


def test_the_schema_says_which_settings_hold_text() -> None:
    shapes = text_settings("search")
    assert shapes["study"] == shapes["data.path"] == shapes["split.path"] == "text", (
        "of the command, of train, of a further choice"
    )
    assert "loss.options" not in shapes and "epochs" not in shapes
    assert text_settings("train")["hydra.launcher.partition"] == "text"
    assert (
        text_settings("predict")["sequences"] == "mapping"
        and text_settings("compare")["runs"] == "list"
    )


def test_an_earlier_name_is_taken_for_the_present_one() -> None:
    assert quote_text_values("train", ["data.volume=FLAIR"]) == ["data.channel=FLAIR"]
    assert quote_text_values("evaluate", ["++data.volume=1.10"]) == ["++data.channel='1.10'"]
    assert quote_text_values("train", ["model=own"]) == ["model=custom"]
    assert quote_text_values("predict", ["volume=2"]) == ["volume=2"]
