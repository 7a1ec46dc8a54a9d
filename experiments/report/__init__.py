"""Tables and figures, made from the records of a comparison and the fits beside them."""

from pathlib import Path

from experiments.report.figures import draw_figures
from experiments.report.table import csv_table, markdown_table


def write_report(folder, title, records, fits):
    """Write table.md, table.csv and figures/*.png into the folder; returns the table's text."""
    folder = Path(folder)
    table = markdown_table(title, records)
    (folder / "table.md").write_text(table)
    (folder / "table.csv").write_text(csv_table(records))
    draw_figures(folder / "figures", records, fits)
    return table
