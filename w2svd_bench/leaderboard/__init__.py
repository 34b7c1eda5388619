"""Leaderboards: pure functions of records, in every form that a paper, a page or a terminal needs."""

from w2svd_bench.leaderboard.board import Leaderboard, Table
from w2svd_bench.leaderboard.render import to_csv, to_latex, to_markdown, to_rich, write_leaderboard

__all__ = ["Leaderboard", "Table", "to_csv", "to_latex", "to_markdown", "to_rich", "write_leaderboard"]
