"""Charts: well-formed, escaped, readable without colour, honest with missing values."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from elchat.plots import (
    Dot,
    Row,
    Series,
    bar_chart,
    interval_chart,
    line_chart,
    thin,
    tick,
    violin_chart,
)

EVIL = '<script>alert("ñ")</script>&'
SVG = "{http://www.w3.org/2000/svg}"


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def lines(*series: Series) -> str:
    return line_chart("Pérdida", series, x_label="paso", y_label="nats")


@pytest.mark.parametrize(
    "svg",
    [
        line_chart(EVIL, [Series(EVIL, [(0, 1), (1, 2)])], x_label=EVIL, y_label=EVIL,
                   marks=[(0.5, EVIL)], description=EVIL),
        interval_chart(EVIL, [EVIL], [Row(EVIL, [Dot(1, 0, 2)], 0.5)], x_label=EVIL),
        bar_chart(EVIL, [(EVIL, 3)], unit=EVIL),
        violin_chart(EVIL, [(EVIL, [1.0, 2.0])], x_label=EVIL),
    ],
)  # fmt: skip
def test_text_from_outside_is_inert(svg: str):
    root = parse(svg)
    assert "<script" not in svg
    assert root.find(f"{SVG}title").text == EVIL
    assert any(t.text and EVIL[:20] in t.text for t in root.iter(f"{SVG}text"))


def test_a_chart_says_in_words_what_it_shows():
    root = parse(lines(Series("CPT", [(0, 4.0), (5, 2.0), (10, 3.0)])))
    assert root.get("role") == "img"
    assert root.find(f"{SVG}desc").text == "CPT: de 4 en 0 a 3 en 10, mínimo 2"
    ids = {root.find(f"{SVG}{name}").get("id") for name in ("title", "desc")}
    assert set(root.get("aria-labelledby").split()) == ids


def test_series_differ_without_colour():
    svg = lines(*(Series(str(i), [(0, i), (1, i)]) for i in range(6)))
    drawn = [line for line in parse(svg).iter(f"{SVG}polyline")]
    assert len({line.get("stroke-dasharray") for line in drawn}) == 6


def test_no_style_that_a_strict_policy_would_block():
    svg = lines(Series("a", [(0, 1), (1, 2)]))
    assert "style=" not in svg
    assert "url(" not in svg


def test_the_line_goes_where_the_values_are():
    points = parse(lines(Series("a", [(0, 1.0), (5, 3.0), (10, 2.0)]))).find(f"{SVG}polyline")
    xy = [tuple(map(float, pair.split(","))) for pair in points.get("points").split()]
    assert xy[0][0] < xy[1][0] < xy[2][0]
    assert xy[1][1] < xy[2][1] < xy[0][1]  # up is less in SVG
    assert xy[1][0] == pytest.approx((xy[0][0] + xy[2][0]) / 2, abs=0.2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_a_number_cuts_the_line(bad: float):
    svg = lines(Series("a", [(0, 1), (1, 1), (2, bad), (3, 2), (4, 1)]))
    assert len(list(parse(svg).iter(f"{SVG}polyline"))) == 2
    assert "nan" not in svg
    assert "inf" not in svg


@pytest.mark.parametrize("series", [[], [Series("a", [])], [Series("a", [(0, math.nan)])]])
def test_nothing_to_draw_is_said(series: list[Series]):
    assert "sin datos" in lines(*series)
    assert "sin datos" in interval_chart("x", ["a"], [Row("r", [None])], x_label="x")
    assert "sin datos" in bar_chart("x", [])


def test_one_point_and_a_flat_line_are_drawn():
    for points in ([(3, 2.0)], [(0, 0.0), (1, 0.0)]):
        assert "polyline" in lines(Series("a", points))


def test_whiskers_end_at_the_interval():
    root = parse(interval_chart("x", ["a"], [Row("r", [Dot(0.5, 0.2, 0.8)])], x_label="x"))
    assert root.find(f"{SVG}desc").text == "r: a 0,5 [0,2; 0,8]"
    dot = float(root.findall(f"{SVG}circle")[-1].get("cx"))
    whisker = next(e for e in root.iter(f"{SVG}line") if e.get("stroke-width") == "1.5")
    ends = float(whisker.get("x1")), float(whisker.get("x2"))
    assert sum(ends) / 2 == pytest.approx(dot, abs=0.2)


def test_thinning_keeps_the_ends_and_every_spike():
    points = [(float(i), 9.0 if i == 4321 else math.sin(i)) for i in range(10_000)]
    kept = thin(points, 200)
    assert len(kept) <= 200
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert (4321.0, 9.0) in kept
    assert kept == sorted(kept)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.19907, "0,1991"), (-2.5, "−2,5"), (3.0, "3"), (1234.4, "1234"),
        (12751, "12\u202f751"), (1_060_000_000, "1,06 G"), (2_500_000, "2,5 M"),
        (1e-7, "1,00e−07"), (math.nan, "—"), (99_999.6, "100\u202f000"),
    ],
)  # fmt: skip
def test_spanish_figures(value: float, text: str):
    assert tick(value) == text


def test_bars_are_as_long_as_their_values():
    widths = [float(w) for w in re.findall(r'<rect[^>]* width="([\d.]+)"',
                                           bar_chart("x", [("a", 4), ("b", 1)]))]  # fmt: skip
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01)


def test_a_violin_is_as_wide_as_its_values_and_marks_their_mean():
    svg = violin_chart("v", [("a", [0.0, 1.0, 2.0]), ("b", [math.nan])], x_label="x")
    root = parse(svg)
    assert root.find(f"{SVG}desc").text == "a: media 1, 3 valores; b: media 0, 0 valores"
    (shape,) = root.iter(f"{SVG}polygon")
    points = [tuple(map(float, pair.split(","))) for pair in shape.get("points").split()]
    (dot,) = root.iter(f"{SVG}circle")
    xs = [x for x, _ in points]
    assert min(xs) < float(dot.get("cx")) < max(xs)
    ys = [y for _, y in points]
    assert min(ys) + max(ys) == pytest.approx(2 * float(dot.get("cy")), abs=0.2)  # mirrored


def test_a_band_is_within_the_axes_and_behind_the_line():
    svg = lines(Series("a", [(0, 1.0), (1, 2.0)], [(0, -3.0, 5.0), (1, 1.0, 3.0)]))
    shapes = [node.tag.removeprefix(SVG) for node in parse(svg).iter()]
    assert shapes.index("polygon") < shapes.index("polyline")
    assert "−3" in svg or "−4" in svg or "−5" in svg
