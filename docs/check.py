"""Looks at the built site: every link and anchor inside it leads somewhere, and no page asks anybody else for anything.

    python docs/check.py site

`zensical build --strict` sees links between Markdown files and their anchors. It does not see what only the pages show:
pictures that are missing, links that are written as HTML or to a folder, links that mkdocstrings makes, entries of the
navigation that have no file. Exit code 1 with a line for each fault.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADING = {
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("link", "href"),
    ("object", "data"),
}
FETCHED = {"mermaid", "glightbox"}  # classes of elements for which the theme's script loads a library from elsewhere
SAYING = {"canonical", "next", "prev", "alternate"}  # values of `rel` that a browser does not load


def main(folder: str) -> int:
    """Prints what is wrong; 0 if nothing is."""
    faults = faults_of(Path(folder))
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults in {folder}")
    return 1 if faults else 0


def faults_of(site: Path) -> list[str]:
    """A line for each link to nothing, and for each thing that a page loads from elsewhere."""
    pages = {path.resolve(): read(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        return [f"{site} holds no page"]
    faults = []
    for path, page in pages.items():
        shown = path.relative_to(site.resolve())
        faults += [f"{shown}: an element of class {each} loads a library from elsewhere" for each in page.fetched]
        for tag, attribute, value in page.links:
            address = urlsplit(value)
            if address.scheme in ("http", "https") or address.netloc:
                if (tag, attribute) in LOADING:
                    faults.append(f"{shown}: <{tag}> loads {value} from elsewhere")
            elif not address.scheme and shown.name != "404.html":  # that page is served at any depth
                target = path if not address.path else (path.parent / unquote(address.path)).resolve()
                target = target / "index.html" if target.is_dir() else target
                if not target.is_file():
                    faults.append(f"{shown}: {value} leads to no file")
                elif address.fragment and target in pages and unquote(address.fragment) not in pages[target].anchors:
                    faults.append(f"{shown}: {value} leads to no anchor")
    return faults


@dataclass
class Page(HTMLParser):
    """What a page links to or loads, and where in it a link may lead."""

    links: list[tuple[str, str, str]] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    fetched: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes what the tag says."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.fetched |= FETCHED & set(values.get("class", "").split())
        if tag == "link" and set(values.get("rel", "").split()) & SAYING:
            return
        self.links += [(tag, name, values[name]) for name in ("href", "src", "data") if values.get(name)]


def read(path: Path) -> Page:
    """One page of the site."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
