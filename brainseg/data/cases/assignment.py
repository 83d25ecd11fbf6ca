"""Which image is which sequence: by the request, or by names that contradict nothing."""

import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence

from brainseg.core.errors import check
from brainseg.data.imageio.base import ImageVolume
from brainseg.data.readers.guess import last_word, sequence_of
from brainseg.data.volume import main_channel

# What a word in a file's name or a series' description says about its content.
WORDS = {
    "label": r"seg|.*mask|masks|.*seg|segmentations?|labels?|labelmap|roi|rois|gt|groundtruth|truth",
    "ct": r"ct|cta|cbct",
    "pet": r"pet|fdg|suv",
    "diffusion": r"adc|dwi|dti|trace",
    "susceptibility": r"swi|swan",
    "functional": r"bold|fmri|asl|rcbv|perfusion",
    "angiography": r"mra|tof",
    "proton density": r"pdw?",
    "localizer": r"localizer|scout|survey",
    "flair": r".*flair.*|t2f|darkfluid|tirm",
    "t1": r"(?:3d)?t1(?!\d).*|mp2?rage|mpr",
    "t2": r"(?:3d)?t2(?!\d|f$).*",
    "contrast": r"ce|gad|gado.*|gd|km|post|postcontrast|postgad|plusc"
    r"|(?:3d)?(?:t1|flair)w?(?:ce|c|gd|gad|post|km)w?|cet1w?",
    "pre": r"pre|precontrast",
}
# What is replaced before a text is cut into words. An image in the space of another is not that other.
REWRITTEN = (
    (r"space-[a-z0-9]+", " "),
    (r"(?:^|(?<=[\W_]))(?:in|to|reg2?)[\W_]?t[12]\w*", " "),
    (r"dark[\W_]?fluid", "darkfluid"),
    (r"\+c", " plusc "),
)
# The words that may stand beside a sequence's own.
WITH = {"flair": {"t2", "pre"}, "contrast": {"t1"}, "t1": {"pre"}}


def assign(
    name: str, volumes: Sequence[ImageVolume], sequences: Mapping[str, str], channels: Sequence[str]
) -> dict[str, ImageVolume]:
    """Return the image for each sequence: what `sequences` names, else what bears a channel's name.

    An image alone is taken for the main channel. Raises RequestError if it is not clear which image is
    which, or if a name contradicts what the image would be taken for.
    """
    if sequences:
        return {
            channel: _named(text, volumes, f"sequences.{channel}")
            for channel, text in sequences.items()
        }
    main = channels[main_channel(channels)]
    chosen = {main: volumes[0]} if len(volumes) == 1 else _by_name(name, volumes, channels)
    for channel, volume in chosen.items():
        check_names(volume.names, channel, channels, name)
        modality = getattr(volume, "modality", "MR")
        remedy = f"if it is {channel}, say so with {typed(f'sequences.{channel}', volume.names[0])}"
        check(modality == "MR", "input", name, f"its DICOM modality is {modality}, not MR", remedy)
    return chosen


def check_names(names: Sequence[str], channel: str, channels: Sequence[str], shown: object) -> None:
    """Refuse an image whose names contradict the sequence that it would be taken for.

    `shown` is the request's value of `input`. Raises RequestError.
    """
    words = contradictions(names, channel, channels)
    rule = f"would be taken for {channel}, and is named after {' and '.join(words)}"
    remedy = f"if it is {channel}, say so with {typed(f'sequences.{channel}', names[0])}"
    check(not words, "input", shown, rule, remedy)


def contradictions(names: Sequence[str], channel: str, channels: Sequence[str]) -> list[str]:
    """Return the words in an image's names that contradict its being the sequence `channel`."""
    if any(plain(_stem(name)) == plain(channel) for name in names):
        return []
    text = " ".join(map(_stem, names))
    named = [other for other in channels if f" {_spaced(other)} " in f" {_spaced(text)} "]
    if named and channel not in named:
        return named
    present, allowed = _kinds(text), set(_kinds(channel))
    if not allowed:
        # Nothing is known about a channel such as "A" but that it is a scan.
        allowed = set(WORDS) - {"label", "ct", "localizer"}
    if "pre" in allowed:
        allowed.add("t1")
    if not allowed.isdisjoint(present):
        allowed = allowed.union(*(WITH.get(kind, set()) for kind in allowed))
    return [word for kind, word in present.items() if kind not in allowed]


def channels_in(text: str, channels: Sequence[str]) -> list[str]:
    """Return the channels that a text names: T1c, but not T1, in the name of a T1ce file.

    A word that `prepare` takes for a sequence, such as t2f or t1gd at the end of a file's name, names
    the channel of that sequence too. Of names within each other the longest counts.
    """
    meaning = sequence_of(last_word(text))
    named = [name for name in channels if plain(name) in plain(text) or name == meaning]
    return [
        name
        for name in named
        if not any(plain(name) in plain(other) for other in named if other != name)
    ]


def plain(text: str) -> str:
    """Return letters and digits alone, in lower case: how names of channels and files are compared."""
    return "".join(character for character in folded(text) if character.isalnum())


def folded(text: str) -> str:
    """Return a text as names are compared: whatever the case, or the way accents are encoded."""
    return unicodedata.normalize("NFC", text).casefold()


def typed(setting: str, value: str) -> str:
    """Return a setting as a user has to type it in a shell."""
    return shlex.quote(f"{setting}={value}")


def _by_name(
    name: str, volumes: Sequence[ImageVolume], channels: Sequence[str]
) -> dict[str, ImageVolume]:
    """Return the images that bear the channels' names, if every image bears just one of them."""
    matches = {}
    for channel in channels:
        named = [
            volume for volume in volumes if channel in channels_in(" ".join(volume.names), channels)
        ]
        # T2_FLAIR contains T2, as the file of T2 does, and means another sequence.
        fitting = [each for each in named if not contradictions(each.names, channel, channels)]
        matches[channel] = fitting if len(named) > 1 else named
    clear = {channel: images[0] for channel, images in matches.items() if len(images) == 1}
    sure = len(clear) == len(volumes) and len({id(volume) for volume in clear.values()}) == len(
        volumes
    )
    settings = " ".join(f"sequences.{channel}=NAME" for channel in channels)
    rule = f"{len(volumes)} series, and it is not clear which is {', '.join(channels)}: {listed(volumes)}"
    remedy = f"assign them: {settings}; a sequence that is left out counts as missing"
    check(sure, "input", name, rule, remedy)
    return clear


def listed(volumes: Sequence[ImageVolume]) -> str:
    """Return the names of images for a message, of more than twelve the first."""
    names = [" | ".join(volume.names) for volume in volumes[:12]]
    return "; ".join([*names, "..."] if len(volumes) > 12 else names)


def _named(text: str, volumes: Sequence[ImageVolume], setting: str) -> ImageVolume:
    """Return the one image that is called so, or has this in one of its names."""
    wanted = folded(text).removeprefix("./").rstrip("/")
    exact = [
        volume
        for volume in volumes
        if any(wanted in (folded(name), folded(name).rpartition("/")[2]) for name in volume.names)
    ]
    # A number within a UID or another number means nothing.
    part = (
        []
        if wanted.isdigit()
        else [volume for volume in volumes if any(wanted in folded(name) for name in volume.names)]
    )
    matches = exact or part
    rule = f"fits {len(matches)} of the series; must fit one"
    check(len(matches) == 1, setting, text, rule, f"there are: {listed(volumes)}")
    return matches[0]


def _kinds(text: str) -> dict[str, str]:
    """Return what the words of a text say about an image: kind, and the word that says so."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    for pattern, replacement in REWRITTEN:
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    kinds: dict[str, str] = {}
    for word in re.findall(r"[A-Za-z0-9]+", text):
        for kind, pattern in WORDS.items():
            if re.fullmatch(pattern, word.lower()):
                kinds.setdefault(kind, word)
    return kinds


def _stem(name: str) -> str:
    """Return a file's name without what it ends with; other names as they are."""
    endings = r"\.(?:nii|hdr|img|mha|mhd|nrrd|nhdr|mgh|mgz|ome|tiff?|dcm)(?:\.(?:gz|bz2|tiff?))?$"
    return re.sub(endings, "", name, flags=re.IGNORECASE)


def _spaced(text: str) -> str:
    return " ".join(re.findall("[a-z0-9]+", text.lower()))
