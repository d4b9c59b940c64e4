"""Tables of text for the terminal, Markdown and HTML from one structure."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from bissl_fast.plain import shown

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


@dataclass(frozen=True)
class Cell:
    """Text of one cell; `best` marks the arm whose interval lies above the other's."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Grid:
    """Rows of cells under `columns`, with a caption that says how to read them."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str

    def to_rich(self) -> Table:
        """For the terminal. Headings and names wrap where there is no room, numbers never do."""
        from rich.table import Table
        from rich.text import Text

        table = Table(caption=Text(shown(self.caption)), caption_justify="left", min_width=72)
        for index, column in enumerate(self.columns):
            widest = max(len(row[index].text) for row in self.rows)
            title = Text(shown(column), overflow="fold")
            if index == 0:
                table.add_column(title, overflow="fold")
            else:
                table.add_column(title, justify="right", no_wrap=len(column) <= widest, min_width=widest)
        for name, *cells in self.rows:
            numbers = (Text(shown(cell.text), style="bold" if cell.best else "", no_wrap=True) for cell in cells)
            table.add_row(Text(shown(name.text)), *numbers)
        return table

    def to_markdown(self) -> str:
        """As GitHub-flavoured Markdown, ending in a newline."""

        def line(cells: list[str]) -> str:
            return "| " + " | ".join(cells) + " |\n"

        def name(text: str) -> str:
            return escape(text, quote=False).replace("|", "\\|")

        head = line([name(column) for column in self.columns]) + line(["---"] + ["---:"] * (len(self.columns) - 1))
        rows = [
            line([name(first.text), *(f"**{cell.text}**" if cell.best else cell.text for cell in cells)])
            for first, *cells in self.rows
        ]
        return head + "".join(rows) + "\n" + escape(self.caption, quote=False) + "\n"

    def to_html(self) -> str:
        """As an HTML `<table>` with `<caption>`, every text escaped."""
        head = "".join(f'<th scope="col">{escape(column)}</th>' for column in self.columns)
        body = []
        for name, *cells in self.rows:
            texts = (f"<b>{escape(cell.text)}</b>" if cell.best else escape(cell.text) for cell in cells)
            values = "".join(f"<td>{text}</td>" for text in texts)
            body.append(f'<tr><th scope="row">{escape(name.text)}</th>{values}</tr>')
        return (
            f"<table><caption><span>{escape(self.caption)}</span></caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        )


@dataclass(frozen=True)
class ResultTable:
    """The scores, and below them what they cost where the run states it."""

    grids: tuple[Grid, ...]

    @property
    def caption(self) -> str:
        """All that is said below."""
        return " ".join(grid.caption for grid in self.grids)

    def to_rich(self) -> Group:
        """For the terminal. Names are shown as they are, never read as rich markup."""
        from rich.console import Group

        return Group(*(grid.to_rich() for grid in self.grids))

    def to_markdown(self) -> str:
        """As GitHub-flavoured Markdown, ending in a newline."""
        return "\n".join(grid.to_markdown() for grid in self.grids)

    def to_html(self) -> str:
        """As HTML, every text escaped."""
        return "\n".join(grid.to_html() for grid in self.grids)
