"""Finds the final answer in the content of a response. Shared by every verifier of rows from files."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_MARK = re.compile(rf"{_BOX.pattern}|\\.|[{{}}]", re.DOTALL)
_PHRASE = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*[:=])[ \t]*(\S.*)$", re.IGNORECASE | re.MULTILINE)
_HASHES = re.compile(r"####[ \t]*(\S.*)$", re.MULTILINE)

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3}(?!\d))?"
_NUMBER = re.compile(rf"(?<![\w.^])[+-]?\s?{_UNSIGNED}(?:\s?/\s?{_UNSIGNED})?(?![\w^]*\d)")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([+-]?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u2080-\u2089]+")  # exponents and indices, digits to NFKC
_MIXED = re.compile("(?<=\\d)(?=[\u00bc-\u00be\u2150-\u215e])")  # between a whole number and its fraction
_FUNCTION = re.compile(r"\\(?:sqrt|pi|log|ln|exp|sin|cos|tan|binom|infty|e)(?![a-z])|[√∛∜π∞]")
_CHOICE = (
    re.compile(r"\(?([A-Za-z])\)?[.):]?"),
    re.compile(r"\(?([A-Z])[.):]\s+(?!(?:(?:or|and)\s+)?\(?[A-Z]\)|(?:or|and)\s+[A-Z](?:\W|$))\S.*", re.DOTALL),
    re.compile(r"(?:option|choice|answer)\s+\(?([A-Za-z])\)?[.):]?", re.IGNORECASE),
)
LONGEST_NUMBER = 200  # characters


def boxes(text: str) -> list[str]:
    r"""The contents of every `\boxed{...}` (or `\fbox`) whose braces balance, in order; nested boxes are opened.

    One pass: a model may well write thousands of boxes and close none.
    """
    found: list[tuple[int, str]] = []  # where each begins, and what is in it
    open_braces: list[re.Match[str]] = []
    for mark in _MARK.finditer(text):
        if mark[0].endswith("{") and mark[0] != "\\{":
            open_braces.append(mark)
        elif mark[0] == "}" and open_braces:
            opening = open_braces.pop()
            if len(opening[0]) > 1:
                _close(found, opening, text[opening.end() : mark.start()].strip())
    return [inside for _, inside in found]


def _close(found: list[tuple[int, str]], opening: re.Match[str], inside: str) -> None:
    """Add a box; those within it go, and if it begins with one it holds the last of them."""
    inner = None
    while found and found[-1][0] > opening.start():
        last = found.pop()[1]
        inner = last if inner is None else inner
    found.append((opening.start(), inner if inner is not None and _BOX.match(inside) else inside))


def final_answer(content: str) -> str | None:
    r"""The final answer that content states, or None where it states none.

    The last `\boxed{...}`; else what follows the last `####`; else what follows the last "answer is" or "answer:" on
    its line; else the whole content if it is one line. Of several answers the last one counts, so naming more of them
    never helps.
    """
    if inside := boxes(content):
        return inside[-1] or None
    for pattern in (_HASHES, _PHRASE):
        if stated := pattern.findall(content):
            return _bare(stated[-1]) or None
    text = content.strip()
    return _bare(text) or None if "\n" not in text else None


def last_line(content: str) -> str:
    """The last line that is not blank, or ""."""
    return next((line.strip() for line in reversed(content.splitlines()) if line.strip()), "")


def _bare(text: str) -> str:
    """The text without emphasis, math delimiters and the full stop that ends a sentence."""
    text = text.strip()
    while len(text) > 1 and (stripped := _unwrapped(text)) != text:
        text = stripped.strip()
    return text


def _unwrapped(text: str) -> str:
    for mark in ("**", "__", "$$", "$", "`", "*"):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            return text[len(mark) : -len(mark)]
    if text.startswith("\\(") and text.endswith("\\)"):
        return text[2:-2]
    return text.rstrip(".")


def parse_number(text: str) -> Fraction | None:
    r"""The one number in a text, exactly; None if there is none, or more than one.

    Thousands commas, a sign, decimals, exponents up to three digits, `1/2` and `\frac{1}{2}` are read; units and
    currency signs around it are passed over, a percent sign too (5% is 5). A root or multiple of pi is no number.
    """
    if len(text) > LONGEST_NUMBER or _FUNCTION.search(text):
        return None
    text = _MIXED.sub(" ", _RAISED.sub(r"^\g<0>", text))
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("\u2044", "/").replace("\\$", "")
    text = _LATEX_FRACTION.sub(r"\1/\2", text).replace("{,}", ",").replace("\\!", "")
    found = _NUMBER.findall(text)
    if len(found) != 1 or len(re.findall(r"\d+", _NUMBER.sub(" ", text))):
        return None
    numerator, _, denominator = re.sub(r"[,\s]", "", found[0]).partition("/")
    try:
        return Fraction(numerator) / Fraction(denominator or 1)
    except (ValueError, ZeroDivisionError):
        return None


def parse_choice(text: str) -> str | None:
    """The letter of a multiple-choice answer, upper-case: `B`, `(b)`, `B.`, `B) the text`, `option B`; else None.

    Of two letters (`(B) or (C)`) none is the answer.
    """
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text).strip()
    for pattern in _CHOICE:
        if match := pattern.fullmatch(text):
            return match[1].upper()
    return None
