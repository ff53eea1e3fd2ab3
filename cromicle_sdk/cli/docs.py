"""`cromicle docs`: shows the pages of the documentation in the terminal."""

from __future__ import annotations

import sys
from importlib.resources import files

import click

__all__ = ["complete_page", "print_list", "print_page"]

_FOLDER = files("cromicle_sdk") / "docs"


def complete_page(context: click.Context, parameter: click.Parameter, start: str) -> list[str]:
    """Return the names of the pages that begin with `start`, for shell completion."""
    return [page for page in _list_pages() if page.startswith(start)]


def print_list() -> None:
    """Print a line for each page: its name and its title."""
    pages = _list_pages()
    width = max(map(len, pages))
    for page in pages:
        title = _read(page).partition("\n")[0].lstrip("# ")
        click.echo(f"{page:{width}}  {title}")


def print_page(name: str) -> None:
    """Print a page, rendered if stdout is a terminal. Raises `UsageError`."""
    if name not in _list_pages():
        raise click.UsageError(f"There is no page {name!r}. The pages: {', '.join(_list_pages())}.")
    text = _read(name)
    if not sys.stdout.isatty():
        click.echo(text, nl=False)
        return
    from rich.console import Console

    from .docs_markdown import Page

    Console().print(Page(text), crop=False)


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.md").read_text(encoding="utf-8")


def _list_pages() -> list[str]:
    return sorted(
        page.name.removesuffix(".md") for page in _FOLDER.iterdir() if page.name.endswith(".md")
    )
