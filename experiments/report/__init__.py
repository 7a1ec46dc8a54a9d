"""Tables, figures and a page, made from the records of a comparison and the fits beside them."""

from pathlib import Path

from experiments.report import comparison
from experiments.report.figures import draw_figures
from experiments.report.page import write_page
from experiments.report.table import csv_table, markdown_table


def write_report(folder, title, records, fits):
    """Write table.md, table.csv, figures/*.png and report.html into the folder.

    Returns the text of table.md.
    """
    folder = Path(folder)
    table = markdown_table(title, records)
    (folder / "table.md").write_text(table)
    (folder / "table.csv").write_text(csv_table(records))
    pictures = draw_figures(folder / "figures", records, fits)
    write_page(folder / "report.html", comparison.page(title, records, pictures))
    return table
