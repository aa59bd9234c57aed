"""The report of a lab: a page that needs nothing else, JSON that reads back, tables for documents."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec

from engine.lab.folder import REPORT, REPORT_PAGE, REPORT_TEXT
from engine.lab.report import Report, make_report, write_report
from tests.support.labs import begun, finish, small_lab

HOSTILE = '<img src="http://x"> & co'


class Balanced(HTMLParser):
    """Fails on tags that close what is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "line", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """A tag that closes itself."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def written(tmp_path: Path) -> tuple[Report, Path]:
    lab = small_lab(tmp_path, lambda text: text.replace('title = "A small lab"', f"title = '{HOSTILE}'"))
    folder = begun(lab)
    for seed in (1, 2, 3):
        finish(folder, "LoRA", seed, 1.0 + seed / 100, exact=0.9, curve=(2.0, 1.5, 1.0 + seed / 100))
        finish(folder, "full", seed, 2.0 + seed / 90, exact=0.5, curve=(2.5, 2.2, 2.0 + seed / 90))
    report = make_report(lab, folder)
    write_report(folder, report)
    return report, folder.path


def test_the_page_is_whole_loads_nothing_and_shows_no_markup_of_others(tmp_path: Path) -> None:
    _, folder = written(tmp_path)
    page = (folder / REPORT_PAGE).read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "<script" not in page
    assert not re.search(r"<img|(src|href)=[\"']?http|@import|url\(", page.replace("&lt;img src=&quot;http", ""))
    assert "&lt;img src=" in page


def test_the_page_has_a_curve_per_arm_and_seed_and_the_answers_first(tmp_path: Path) -> None:
    report, folder = written(tmp_path)
    page = (folder / REPORT_PAGE).read_text()
    assert len(re.findall(r'<path class="arm arm\d+ seed"', page)) == 6
    assert len(re.findall(r'<path class="arm arm\d+"', page)) == 2
    assert page.index("LoRA won") < page.index("Held-out loss")
    assert report.verdicts[0].winner == "LoRA"


def test_json_reads_back_as_the_same_report(tmp_path: Path) -> None:
    report, folder = written(tmp_path)
    assert msgspec.json.decode((folder / REPORT).read_bytes(), type=Report) == report


def test_tables_name_every_arm_with_its_interval_and_the_winner_in_bold(tmp_path: Path) -> None:
    report, folder = written(tmp_path)
    text = (folder / REPORT_TEXT).read_text()
    rows = [line for line in text.splitlines() if line.startswith("| LoRA") or line.startswith("| full")]
    assert len(rows) == 4
    assert "**1.020 ± 0.025**" in rows[2]
    assert report.how in text
    assert report.method in text
