"""MkDocs hooks: links of pages to anything in the repository, which hold on GitHub, hold in the site, too.

A file outside docs/ that a page links to joins the site below repository/; a folder becomes its README.md or a page
that lists it. A link that leads nowhere is left as it is, which `mkdocs build --strict` refuses.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()(?!\w+:|/)([^)#\s]+)")


def targets(path: Path) -> list[Path]:
    """What exists of all that a page links to."""
    found = (Path(posixpath.normpath(path.parent / link)) for link in LINK.findall(path.read_text(encoding="utf-8")))
    return [target for target in found if target.exists()]


def address(target: Path, config: MkDocsConfig) -> str:
    """Where the site has a file or folder of the repository, as a path below the site's root."""
    docs = Path(config.docs_dir)
    if target.is_dir():
        names = (target / "README.md", target / "index.md")
        target = next(filter(Path.exists, names), names[-1])
    if target.is_relative_to(docs):
        return target.relative_to(docs).as_posix()
    return f"repository/{target.relative_to(docs.parent).as_posix()}"


def listing(folder: Path) -> str:
    """A page of all files of a folder, its own first."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names.sort(key=lambda name: name.count("/"))
    return f"# {folder.name}\n\n" + "".join(f"- [{name}]({name})\n" for name in names)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what pages link to and docs/ does not hold."""
    waiting = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    while waiting:
        for target in targets(waiting.pop()):
            uri = address(target, config)
            if files.get_file_from_path(uri) is not None:
                continue
            if target.is_dir() and uri.endswith("/index.md"):
                files.append(File.generated(config, uri, content=listing(target)))
                continue
            source = target / "README.md" if target.is_dir() else target
            files.append(File.generated(config, uri, abs_src_path=str(source)))
            if source.suffix == ".md":
                waiting.append(source)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links as GitHub follows them into links within the site."""
    if not page.file.abs_src_path:
        return markdown
    source, here = Path(page.file.abs_src_path), posixpath.dirname(page.file.src_uri)

    def within_site(match: re.Match[str]) -> str:
        target = Path(posixpath.normpath(source.parent / match[1]))
        return posixpath.relpath(address(target, config), here) if target.exists() else match[1]

    return LINK.sub(within_site, markdown)
