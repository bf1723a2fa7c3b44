"""Tables for terminals."""

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines for terminals: cells in columns, the first `left` of them aligned left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = (
        [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    )
    return ["  ".join(cells).rstrip() for cells in aligned]
