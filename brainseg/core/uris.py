"""Addresses of databases and servers, which are stored and printed and so must hold no password."""

from urllib.parse import SplitResult, parse_qs, urlsplit

from brainseg.core.errors import RequestError


def split_uri(setting: str, uri: str, rule: str) -> SplitResult:
    """Return the parts of a URI. Raises RequestError, with `rule`, if it is malformed."""
    try:
        return urlsplit(uri)
    except ValueError:
        # The text is not repeated, because a malformed URI may hold a password, too.
        scheme = uri.partition("://")[0]
        raise RequestError(f"{setting}={scheme}://...: {rule}") from None


def contains_password(parts: SplitResult) -> bool:
    """Return True if a URI contains a password, before the host or as a parameter."""
    return bool(parts.password) or any(
        name.lower().endswith("password") for name in parse_qs(parts.query)
    )
