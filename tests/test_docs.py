"""The documentation builds without a warning, leads nowhere that is not there, and opens without a network."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

pytest.importorskip("material")

ROOT = Path(__file__).resolve().parents[1]


class Page(HTMLParser):
    """The anchors of a page, where its links lead, and what it loads by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = {name: value or "" for name, value in attrs}
        self.anchors |= {of[name] for name in ("id", "name") if name in of}
        if tag == "a" and "href" in of:
            self.links.append(of["href"])
        elif tag in ("img", "script", "source", "iframe") and "src" in of:
            self.loaded.append(of["src"])
        elif tag == "link" and of.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loaded.append(of["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    return folder


def pages(site: Path) -> Iterator[tuple[Path, Page]]:
    for path in sorted(site.rglob("*.html")):
        if (
            path.name != "404.html"
        ):  # served for any address, so that its links begin at the top of a host
            yield path, Page(path.read_text())


def test_every_link_and_anchor_of_the_site_is_there(site: Path) -> None:
    built = dict(pages(site))
    assert {path.stem for path in built} >= {path.stem for path in (ROOT / "docs").glob("*.md")}
    for path, page in built.items():
        for link in (*page.links, *page.loaded):
            where, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:|//", where):
                continue
            target = (path.parent / where).resolve() if where else path
            assert target.exists(), f"{path.name} leads to {link}"
            assert not anchor or anchor in built[target].anchors, f"{path.name} leads to {link}"


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    for path, page in pages(site):
        assert page.loaded
        assert not [
            one
            for one in page.loaded
            if re.match(r"[a-z]+:|//", one) and not one.startswith("data:")
        ], path.name


def test_every_file_that_the_readme_links_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text())
    own = [link for link in links if "://" not in link]
    assert len(own) >= 8
    assert not [link for link in own if not (ROOT / link).exists()]
