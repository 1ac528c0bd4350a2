"""HTML elements of the report; each function escapes its text, and the page refers to nothing outside itself."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from r3l.config.errors import UserError
from r3l.evaluation.report.visits import MissingError

CSS = """
:root { color-scheme: light; --ink: #1d2430; --soft: #55606e; --line: #dde2e8; --blue: #0072b2; --paper: #f6f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 1.2rem; }
h1 { margin: .2rem 0; font-size: 1.9rem; } h2 { margin: 0 0 .3rem; font-size: 1.3rem; }
h3 { margin: 1.4rem 0 .4rem; font-size: 1.05rem; }
p { margin: .4rem 0 .8rem; max-width: 75ch; } .lead { color: var(--soft); } code { overflow-wrap: anywhere; }
section, header { background: white; border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.3rem; }
section { margin-top: 1.1rem; } nav { margin: .9rem 0 0; font-size: .9rem; }
nav a { margin-right: 1rem; display: inline-block; }
a { color: var(--blue); } footer { color: var(--soft); font-size: .85rem; padding: 1rem 0; }
.badge { display: inline-block; padding: .1rem .6rem; border-radius: 99px; font-size: .85rem; font-weight: 600; }
.good { background: #d7f0e6; color: #00503a; } .warn { background: #fdeacc; color: #6b3d00; }
.alarm { background: #fbdcd0; color: #7a2600; } .callout { border-left: 5px solid #d55e00; padding: .5rem .9rem; }
.note { background: var(--paper); border-left: 5px solid #9aa4b0; padding: .5rem .9rem; max-width: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(145px, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.4rem; line-height: 1.25; } .tile small, .tile span { color: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: .88rem; color: var(--soft); line-height: 1.4; } figcaption b { color: var(--ink); }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)); gap: .5rem; }
.frames { margin: .4rem 0 1rem; }
.frames img { width: 100%; image-rendering: pixelated; border-radius: 3px; } .frames img + img { margin-top: 3px; }
.frames figcaption { font-size: .75rem; text-align: center; } .frames .mark img { outline: 3px solid #009e73; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; margin: .4rem 0 .8rem; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { position: relative; height: .7rem; width: 150px; background: #e8ebef; border-radius: 4px; margin-top: .4rem; }
.bar i { position: absolute; top: 0; height: 100%; background: #9cc9e6; border-radius: 4px; }
.bar b { position: absolute; top: -3px; width: 4px; height: 1.05rem; background: var(--blue); border-radius: 2px; }
.settings { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); gap: 0 1.6rem; }
.settings table { width: 100%; } .changed { background: #fff3d6; }
"""


def escaped(text: object) -> str:
    """Escape text for HTML."""
    return escape(str(text))


def picture(content: bytes, alt: str) -> str:
    """Return an image tag with the PNG or SVG inside."""
    kind = "png" if content.startswith(b"\x89PNG") else "svg+xml"
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def plot(content: bytes, title: str, note: str = "") -> str:
    """Return a plot with its title and a note about what to look for."""
    return f"<figure><figcaption><b>{escape(title)}.</b> {escape(note)}</figcaption>{picture(content, title)}</figure>"


def frame(pictures: Sequence[bytes], caption: str, *, marked: bool = False) -> str:
    """Return camera pictures one above the other, with a caption."""
    images = "".join(picture(content, caption) for content in pictures)
    return f"<figure{' class=mark' if marked else ''}>{images}<figcaption>{escape(caption)}</figcaption></figure>"


def frames(parts: Sequence[str]) -> str:
    """Return frames side by side, wrapped where the screen is narrow."""
    return f'<div class="frames">{"".join(parts)}</div>'


def grid(parts: Sequence[str]) -> str:
    """Return plots side by side, one below the other on a phone."""
    return f'<div class="grid">{"".join(parts)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table; numbers are aligned right, `Markup` cells are not escaped."""
    numeric = [bool(rows) and all(isinstance(row[k], int | float) for row in rows) for k in range(len(head))]

    def line(tag: str, cells: Sequence[Any]) -> str:
        return "".join(
            f"<{tag}{' class=number' if number else ''}>{cell_text(cell)}</{tag}>"
            for cell, number in zip(cells, numeric, strict=True)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{line("th", head)}</tr>{body}</table></div>'


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def cell_text(cell: Any) -> str:
    """Return a cell's value as HTML."""
    if isinstance(cell, Markup):
        return cell
    return escaped(f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else cell)


def bar(value: float, low: float, high: float) -> Markup:
    """Draw a share in [0, 1] with its interval."""
    interval = f'<i style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
    return Markup(f'<div class="bar">{interval}<b style="left:calc({100 * value:.1f}% - 2px)"></b></div>')


def tile(label: str, value: str, note: str = "") -> str:
    """Return a number for the header, with its label and a note."""
    return f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b><small>{escape(note)}</small></div>'


def note(text: str) -> str:
    """Return a remark, for example about something that is missing."""
    return f'<p class="note">{escape(text)}</p>'


def attempt(write: Callable[[], str]) -> str:
    """Return what `write` returns, or a note about what is missing or damaged: half a run gets half a report."""
    try:
        return write()
    except MissingError as missing:
        return note(f"Missing: {missing}.")
    except (UserError, RuntimeError, OSError, sqlite3.Error, ValueError, KeyError, TypeError) as error:
        return note(f"Cannot be shown: {error} ({type(error).__name__}).")


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>"


def section(anchor: str, title: str, lead: str, body: str) -> str:
    """Return a section; `lead` says what to look for."""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2><p class="lead">{escape(lead)}</p>{body}</section>'


def document(title: str, body: str) -> str:
    """Return the whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>{body}</main></body></html>\n"
    )
