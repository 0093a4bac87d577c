"""The report: a whole page from real metrics, whatever is missing from them."""

import json
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from stories import story

from bench.charts import COLOURS
from bench.figures import auc_over_time, calibration_over_time
from bench.report import main, read_metrics, render
from bench.story import Story
from schemas.process import UserError

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use", "rect", "line"}


class Page(HTMLParser):
    """Collects ids, references and words; `open` is what was never closed."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.references, self.words, self.open = [], set(), [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.note(attrs)

    def handle_startendtag(self, tag, attrs):
        self.note(attrs)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open, f"</{tag}> closes nothing"
            # td, tr and the like may be left open in HTML, but not here.
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    def note(self, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            self.references |= set(re.findall(r"url\(#([^)]+)\)", value or ""))
            if name == "href":
                self.references.add(value.removeprefix("#"))

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page_of(metrics, told=None):
    text = render(metrics, told)
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert page.references <= set(page.ids)
    # Nothing from elsewhere, no colour of the charts' own, no figure that is not one.
    assert not re.search(r"(src=|@import|https?://)", text)
    assert not [colour for colour in COLOURS.values() if colour in text]
    assert not re.search(r"\bnan\b|None", page.text)
    return page, text


def test_tells_what_the_metrics_hold(metrics):
    page, _ = page_of(metrics, story(live_from_ms=metrics["windows"][-1]["end_ms"]))
    for arm, found in metrics["arms"].items():
        assert f"{arm} " in page.text
        assert f"{found['auc']:.4f}" in page.text
    assert f"{metrics['arms']['continuous']['auc'] - metrics['arms']['frozen']['auc']:+.4f}" in page.text
    assert f"{metrics['examples']:,} examples" in page.text
    assert "2.5 s after the last like" in page.text
    for name in ("auc", "reliability", "calibration", "growth", "throughput", "visit"):
        # Each for wide screens and for narrow ones.
        assert f"{name}-figure_1" in page.ids
        assert f"{name}-n-figure_1" in page.ids


def test_without_a_guest(metrics):
    page, _ = page_of(metrics)
    assert "guest" not in page.text
    assert "visit-figure_1" not in page.ids


def test_without_arms(run_metrics):
    page, _ = page_of(run_metrics())
    assert "frozen" not in page.text
    assert "no arms to compare with" in page.text
    assert "auc-figure_1" in page.ids


def test_says_of_the_run_only_what_was(run_metrics, metrics):
    page, _ = page_of(metrics)
    assert "impressions over 3 days of event time" in page.text
    assert "Every model scored each one" in page.text
    assert "The first part is a warm start" in page.text
    assert "Dotted lines are the daily" in page.text
    page, _ = page_of(run_metrics(warm_start_s=0))
    assert "impressions over 3 days of event time" in page.text
    assert "Each one was scored as of its request" in page.text
    assert "evaluated, from the first on" in page.text
    for untrue in ("Every model", "warm start", "Dotted lines", "paired"):
        assert untrue not in page.text
    page, _ = page_of(run_metrics("frozen", warm_start_s=0))
    assert "The arms are paired" in page.text
    assert "Dotted lines" not in page.text


def test_one_window_is_a_mark(metrics):
    one = metrics | {"windows": metrics["windows"][:1]}
    for chart in (auc_over_time(one), calibration_over_time(one)):
        axes = Figure().subplots()
        chart.draw(axes, False)
        points = [line for line in axes.lines if len(line.get_xdata()) == 1 and line.get_linestyle() == "-"]
        assert {line.get_color() for line in points if line.get_marker() == "o"} >= {COLOURS["continuous"], COLOURS["frozen"]}


def test_before_a_window_has_closed(run_metrics):
    short = run_metrics("frozen", window=1_000_000)
    assert short["windows"] == short["growth"] == []
    page, _ = page_of(short, story())
    assert "No window of the evaluated stream has closed yet" in page.text
    assert not {"auc-figure_1", "calibration-figure_1", "growth-figure_1", "throughput-figure_1"} & set(page.ids)
    assert "reliability-figure_1" in page.ids


def test_nothing_evaluated(run_metrics):
    page, _ = page_of(run_metrics("frozen", warm_start_s=30 * 86_400))
    assert "none evaluated yet" in page.text
    assert not {"auc-figure_1", "reliability-figure_1", "calibration-figure_1"} & set(page.ids)


def test_a_window_of_one_class_is_left_out_not_drawn_as_a_figure(metrics):
    windows = [dict(window) for window in metrics["windows"]]
    windows[1]["auc"] = dict.fromkeys(windows[1]["auc"])
    windows[1]["calibration"] = dict.fromkeys(windows[1]["calibration"])
    page, _ = page_of(metrics | {"windows": windows})
    assert "auc-figure_1" in page.ids


def test_what_others_wrote_is_no_markup(metrics):
    _, text = page_of(metrics, story(tag="#<script>alert(1)</script>"))
    assert "<script" not in text
    assert "#&lt;script&gt;" in text


def test_a_story_survives_its_file(tmp_path):
    told = story()
    told.write(tmp_path / "guest.json")
    assert Story.read(tmp_path / "guest.json") == told


def test_command(metrics, tmp_path, capsys):
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    story().write(tmp_path / "guest.json")
    out = tmp_path / "new" / "report.html"
    arguments = ["--metrics", tmp_path / "metrics.json", "--guest", tmp_path / "guest.json", "--out", out]
    assert main([*map(str, arguments)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_text().startswith("<!doctype html>")
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


class Asked(dict):
    """Metrics that note which figures a reader cannot do without."""

    def __init__(self, metrics):
        super().__init__(metrics)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


def test_a_file_that_lacks_a_figure_of_the_page_is_refused_in_one_line(metrics, tmp_path):
    asked = Asked(metrics)
    render(asked, story())
    assert {"arms", "first_event_ms", "evaluated_from_ms", "newest_learned_ms"} < asked.names
    file = tmp_path / "metrics.json"
    for name in asked.names:
        file.write_text(json.dumps({other: figure for other, figure in metrics.items() if other != name}))
        with pytest.raises(UserError, match=rf"has no {name}: give the file") as refused:
            read_metrics(file)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("text", "said"), [("{}", "no actions or arms"), ("[]", "no actions"), ("{", "cannot be read")])
def test_other_files_are_refused_in_one_line(tmp_path, text, said):
    file = tmp_path / "metrics.json"
    file.write_text(text)
    with pytest.raises(UserError, match=said) as refused:
        read_metrics(file)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="not a demo's story"):
        Story.read(file)
