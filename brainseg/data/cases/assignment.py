"""Assignment of a case's images to the channels of a checkpoint, by the request or by names."""

import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence

from brainseg.core.errors import check
from brainseg.data.imageio.base import ImageVolume
from brainseg.data.readers.guess import last_word, sequence_of
from brainseg.data.volume import main_channel

# Kinds of images, and the words in a file's name or series description that mean each kind.
WORD_PATTERNS = {
    "label": r"seg|.*mask|masks|.*seg|segmentations?|labels?|labelmap"
    r"|roi|rois|gt|groundtruth|truth",
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
# Replacements before a text is cut into words. The name of an image that was registered to another
# one also contains that other image's sequence, which must not count.
REWRITE_RULES = (
    (r"space-[a-z0-9]+", " "),
    (r"(?:^|(?<=[\W_]))(?:in|to|reg2?)[\W_]?t[12]\w*", " "),
    (r"dark[\W_]?fluid", "darkfluid"),
    (r"\+c", " plusc "),
)
# The kinds whose words may also stand in the name of an image of this kind.
RELATED_KINDS = {"flair": {"t2", "pre"}, "contrast": {"t1"}, "t1": {"pre"}}


def assign_channels(
    name: str, volumes: Sequence[ImageVolume], sequences: Mapping[str, str], channels: Sequence[str]
) -> dict[str, ImageVolume]:
    """Return the image of each sequence, chosen by `sequences` or else by the channels' names.

    A single image is assigned to the main channel. Raises RequestError if the assignment is
    ambiguous, or if the name of an image contradicts its channel.
    """
    if sequences:
        return {
            channel: _select_volume(text, volumes, f"sequences.{channel}")
            for channel, text in sequences.items()
        }
    main = channels[main_channel(channels)]
    chosen = {main: volumes[0]} if len(volumes) == 1 else _by_name(name, volumes, channels)
    for channel, volume in chosen.items():
        check_names(volume.names, channel, channels, name)
        modality = getattr(volume, "modality", "MR")
        assigned = quote_setting(f"sequences.{channel}", volume.names[0])
        remedy = f"if it is {channel}, say so with {assigned}"
        check(modality == "MR", "input", name, f"its DICOM modality is {modality}, not MR", remedy)
    return chosen


def check_names(
    names: Sequence[str], channel: str, channels: Sequence[str], source: object
) -> None:
    """Raise RequestError if the names of an image contradict the channel it would be assigned to.

    `source` is the request's value of `input`, for the message.
    """
    words = contradictions(names, channel, channels)
    rule = f"would be taken for {channel}, and is named after {' and '.join(words)}"
    remedy = f"if it is {channel}, say so with {quote_setting(f'sequences.{channel}', names[0])}"
    check(not words, "input", source, rule, remedy)


def contradictions(names: Sequence[str], channel: str, channels: Sequence[str]) -> list[str]:
    """Return the words in an image's names that contradict the sequence `channel`."""
    # An image that has exactly the channel's name fits, even if its other names differ.
    if any(letters_and_digits(_stem(name)) == letters_and_digits(channel) for name in names):
        return []
    text = " ".join(map(_stem, names))
    named = [other for other in channels if f" {_words_of(other)} " in f" {_words_of(text)} "]
    if named and channel not in named:
        return named
    present, allowed = _kinds(text), set(_kinds(channel))
    if not allowed:
        # The name of a channel such as "A" says nothing except that it is a scan.
        allowed = set(WORD_PATTERNS) - {"label", "ct", "localizer"}
    # A pre-contrast channel is a T1-weighted one, whether or not its name says so.
    if "pre" in allowed:
        allowed.add("t1")
    # Words of related kinds are accepted only beside a word of the channel's kind.
    if not allowed.isdisjoint(present):
        allowed = allowed.union(*(RELATED_KINDS.get(kind, set()) for kind in allowed))
    return [word for kind, word in present.items() if kind not in allowed]


def channels_in(text: str, channels: Sequence[str]) -> list[str]:
    """Return the channels that a text names, such as T1c, but not T1, for a T1ce file.

    A word that `prepare` takes for a sequence, such as t2f or t1gd at the end of a file's name,
    names the channel of that sequence, too. If a channel's name contains another channel's name,
    only the longer name counts.
    """
    meaning = sequence_of(last_word(text))
    named = [
        name
        for name in channels
        if letters_and_digits(name) in letters_and_digits(text) or name == meaning
    ]
    return [
        name
        for name in named
        if not any(
            letters_and_digits(name) in letters_and_digits(other)
            for other in named
            if other != name
        )
    ]


def letters_and_digits(text: str) -> str:
    """Return only the letters and digits of a text, in lower case, to compare names."""
    return "".join(character for character in normalize_case(text) if character.isalnum())


def normalize_case(text: str) -> str:
    """Return a text with its case and the encoding of its accents normalized."""
    return unicodedata.normalize("NFC", text).casefold()


def quote_setting(setting: str, value: str) -> str:
    """Return a setting quoted as a user has to type it in a shell."""
    return shlex.quote(f"{setting}={value}")


def _by_name(
    name: str, volumes: Sequence[ImageVolume], channels: Sequence[str]
) -> dict[str, ImageVolume]:
    """Return the images by channel, if each image has the name of exactly one channel.

    Raises RequestError otherwise.
    """
    matches = {}
    for channel in channels:
        named = [
            volume for volume in volumes if channel in channels_in(" ".join(volume.names), channels)
        ]
        # T2_FLAIR contains T2, as the T2 file does, and means another sequence.
        fitting = [
            volume for volume in named if not contradictions(volume.names, channel, channels)
        ]
        matches[channel] = fitting if len(named) > 1 else named
    clear = {channel: images[0] for channel, images in matches.items() if len(images) == 1}
    distinct_ids = {id(volume) for volume in clear.values()}
    is_clear = len(clear) == len(distinct_ids) == len(volumes)
    settings = " ".join(f"sequences.{channel}=NAME" for channel in channels)
    rule = (
        f"{len(volumes)} series, and it is not clear which is "
        f"{', '.join(channels)}: {list_volume_names(volumes)}"
    )
    remedy = f"assign them: {settings}; a sequence that is left out counts as missing"
    check(is_clear, "input", name, rule, remedy)
    return clear


def list_volume_names(volumes: Sequence[ImageVolume]) -> str:
    """Return the names of at most twelve images, for a message."""
    names = [" | ".join(volume.names) for volume in volumes[:12]]
    return "; ".join([*names, "..."] if len(volumes) > 12 else names)


def _select_volume(text: str, volumes: Sequence[ImageVolume], setting: str) -> ImageVolume:
    """Return the only image with this name, or with this text in one of its names.

    Raises RequestError if no image or several images match.
    """
    name_part = normalize_case(text).removeprefix("./").rstrip("/")
    exact = [
        volume
        for volume in volumes
        if any(
            name_part in (normalize_case(name), normalize_case(name).rpartition("/")[2])
            for name in volume.names
        )
    ]
    # A number that occurs within a UID or within another number means nothing.
    partial = (
        []
        if name_part.isdigit()
        else [
            volume
            for volume in volumes
            if any(name_part in normalize_case(name) for name in volume.names)
        ]
    )
    matches = exact or partial
    rule = f"fits {len(matches)} of the series; must fit one"
    check(len(matches) == 1, setting, text, rule, f"there are: {list_volume_names(volumes)}")
    return matches[0]


def _kinds(text: str) -> dict[str, str]:
    """Return the kinds that the words of a text mean, and for each kind the first such word."""
    # A capital letter within a name begins a word, as in sagittalFlair.
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    for pattern, replacement in REWRITE_RULES:
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    kinds: dict[str, str] = {}
    for word in re.findall(r"[A-Za-z0-9]+", text):
        for kind, pattern in WORD_PATTERNS.items():
            if re.fullmatch(pattern, word.lower()):
                kinds.setdefault(kind, word)
    return kinds


def _stem(name: str) -> str:
    """Return a file's name without its suffix. Other names are returned unchanged."""
    endings = r"\.(?:nii|hdr|img|mha|mhd|nrrd|nhdr|mgh|mgz|ome|tiff?|dcm)(?:\.(?:gz|bz2|tiff?))?$"
    return re.sub(endings, "", name, flags=re.IGNORECASE)


def _words_of(text: str) -> str:
    """Return the words of a text in lower case, separated by single spaces."""
    return " ".join(re.findall("[a-z0-9]+", text.lower()))
