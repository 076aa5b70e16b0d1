"""Every figure and table: one style, drawn from results files."""

from surgery_lib.report.style import interval, markdown_table, percent, save, style

__all__ = ["interval", "markdown_table", "percent", "save", "style"]
