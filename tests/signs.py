"""Signs that may stand in a name: every printable one of ASCII, and others that have broken programs."""

import string

# Umlauts, both composed and as a letter with a mark of its own, other scripts, two that are written from right to left, an
# emoji outside of the basic plane, an emoji of several code points, a space that does not break, and quotes of print.
OTHERS = [*"äßÉñøŁşΩЖ漢字かアनع한א🧠№°–", "u\u0308", "👩\u200d⚕", "\u00a0", "“”"]
PRINTABLE = [sign for sign in string.printable if sign.isprintable()]
IN_NAMES = [sign for sign in [*PRINTABLE, *OTHERS] if sign != "/"]
