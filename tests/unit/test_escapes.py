"""Labels and reasons are anybody's text: Markdown and LaTeX show it as it stands."""

from __future__ import annotations

import html
import re
import unicodedata

import pytest
from markdown_it import MarkdownIt

from w2svd_bench.leaderboard import Leaderboard, to_latex, to_markdown
from w2svd_bench.leaderboard.latex import latex_text

from records import check_latex, grid, make, skipped


def test_markdown_escapes() -> None:
    text = to_markdown(Leaderboard.from_records([make("a|b*<i>`x\n~", fid=skipped("no | pipe"))]).table())
    assert "| a\\|b\\*\\<i>\\`x \\~ | 4 |" in text and "<sup>1</sup> no \\| pipe" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, "every row has the same columns"


@pytest.mark.parametrize(
    "label",
    ["[a](http://b)", "![a](b)", "[a][b]", "[a]", "x&lt;y", "&amp;copy;", "a&b", "a<b>c", "a_b", "my*fast*net", "a|b",
     "a`b`c", "a\\b", "a\\|b", "~~a~~", "alpha=0.5 [x]", "snake_case_ and _x_"],
)  # fmt: skip
def test_markdown_shows_the_text_itself(label: str) -> None:
    """By a parser of its own; it is also what a footnote shows."""
    text = to_markdown(Leaderboard.from_records([make(label, fid=skipped(label))]).table())
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    assert f'<td style="text-align:left">{html.escape(label)}</td>' in page
    assert f"<p><sup>1</sup> {html.escape(label)}</p>" in page


@pytest.mark.parametrize("label", ["100%_&_#1", "[x]", "*", r"\input{a}", "$x^2$ ~ {", '<a> | "b"', "α=0 ± 1 — × ↑"])
def test_latex_escapes(label: str) -> None:
    table = Leaderboard.from_records([make("plain"), make(label, fid=skipped(f"bad {label}"))]).table()
    check_latex(to_latex(table), len(table.columns))


def test_latex_escapes_to_the_same_words() -> None:
    text = to_latex(Leaderboard.from_records([make(r"50%_a&b#{\x}~^$")]).table())
    escaped = r"50\%\_a\&b\#\{\textbackslash{}x\}\textasciitilde{}\textasciicircum{}\$ & 4 &"
    assert escaped in text


@pytest.mark.parametrize(
    ("label", "latex"),
    [
        ("γ=0.5, η", r"$\gamma$=0.5, $\eta$"),
        ("ΔΑχΩ", r"$\Delta$A$\chi$$\Omega$"),
        ("ω–ο", r"$\omega$--o"),
        ("5 µs, ϵ ≠ ε", r"5 $\mu$s, $\epsilon$ $\neq$ $\varepsilon$"),
        ("Fréchet, Ørsted, e\u0301, Şahin", r"Fr\'{e}chet, \O{}rsted, \'{e}, \c{S}ahin"),
        ("“a”…", r"``a''\ldots{}"),
        ("中 d\u0336 ά\x07", r"\textless{}U+4E2D\textgreater{} d\textless{}U+0336\textgreater{} "
                           r"\textless{}U+03AC\textgreater{}\textless{}U+0007\textgreater{}"),
    ],
)  # fmt: skip
def test_latex_has_other_alphabets_in_ascii(label: str, latex: str) -> None:
    table = Leaderboard.from_records([make(label)]).table()
    text = to_latex(table)
    check_latex(text, len(table.columns))
    assert f"\n{latex} & 4 &" in text


def test_latex_has_all_greek_letters() -> None:
    capitals = "".join(chr(code) for code in range(0x391, 0x3AA) if code != 0x3A2)
    for letters in (capitals, capitals.lower() + "ς"):
        found = [latex_text(letter) for letter in letters]
        assert len(set(found)) == len(letters)
        for letter, text in zip(letters, found, strict=True):
            name = unicodedata.name(letter).split()[-1].lower().replace("lamda", "lambda")
            assert len(text) == 1 or text.strip("$\\").removeprefix("var").lower() == name, letter
            assert len(text) > 1 or text in "oABEZHIKMNOPTX"


@pytest.mark.parametrize(
    "harm",
    [
        (r"\end{tabular}", ""),
        (r"\_", "_"),
        (" & 4 & ", " & "),
        (r"\multicolumn{1}", r"\multicolumn{2}"),
        (r"\end{table}", "é"),
        (r"\fi", ""),
        ("{l", "{lr"),
        (r"{\scriptsize", r"{{\scriptsize"),
        (r"$\pm$", r"$\pm"),
    ],
)
def test_the_check_of_latex_can_fail(harm: tuple[str, str]) -> None:
    pivoted = harm[0].startswith(r"\multicolumn")
    table = Leaderboard.from_records(grid()).table(by="steps" if pivoted else "")
    text = to_latex(table)
    check_latex(text, len(table.columns))
    broken = text.replace(*harm, 1)
    assert broken != text
    with pytest.raises(AssertionError):
        check_latex(broken, len(table.columns))
