import pytest

from dllm.evaluate import pictures
from dllm.evaluate.pictures import SPEEDS, Dot, draw
from dllm.evaluate.score import wilson


def dot(label="none", colour="static", right=30, forward=1.0, second=100.0):
    low, high = wilson(right, 50)
    return Dot(label, colour, label, right / 50, low, high, forward, second)


def grid():
    rates = {"static": 0.92, "threshold: threshold=0.8": 2.6, "factor": 3.2}
    return [
        dot(cache, name, 35 - i, rate + i / 40, 90 * rate + 200 * i)
        for name, rate in rates.items()
        for i, cache in enumerate(("none", "prefix", "dual"))
    ]


@pytest.fixture
def seen(monkeypatch):
    """The renderer and axes that labels were placed on, and their speed."""
    placed, place = [], pictures.place_labels

    def watched(renderer, axes, dots, speed, paint):
        place(renderer, axes, dots, speed, paint)
        placed.append((renderer, axes, speed))

    monkeypatch.setattr(pictures, "place_labels", watched)
    return placed


def test_every_dot_is_labelled_and_no_label_covers_another(tmp_path, seen):
    from matplotlib.text import Text

    draw({"copy": grid(), "sort": grid()[:4]}, "a note", tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert [speed for *_, speed in seen] == [*SPEEDS, *SPEEDS]
    for (renderer, axes, _), n in zip(seen, (9, 9, 4, 4), strict=True):
        boxes = [Text.get_window_extent(label, renderer) for label in axes.texts]
        assert len(boxes) == n and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_front_is_drawn_and_its_area_told(tmp_path, seen):
    dots = [dot("slow", right=40, second=90.0), dot("fast", right=39, forward=3.0, second=50.0), dot("bad", right=9)]
    draw({"copy": dots}, "", tmp_path / "grid.png")
    (_, left, _), (_, right, _) = seen
    lines = [next(line for line in axes.lines if line.get_linestyle() == "--") for axes in (left, right)]
    assert [[*map(float, line.get_xdata())] for line in lines] == [[1.0, 3.0], [90.0, 100.0]]
    assert left.get_title(loc="left") == "copy: area under the front (AUP) 232"
    assert [axes.get_xlabel() for axes in (left, right)] == ["answer tokens per forward", "answer tokens per second"]


@pytest.mark.parametrize("labels", ["samplers", "caches"])
def test_a_legend_tells_what_labels_do_not(tmp_path, seen, labels):
    dots = [dot(name if labels == "samplers" else "none", name) for name in ("static", "factor")]
    draw({"copy": dots}, "", tmp_path / "grid.png")
    assert len(seen[0][1].figure.legends) == (labels == "caches")


@pytest.mark.parametrize("right", [0, 50])
def test_one_dot_at_the_edge(tmp_path, seen, right):
    draw({"copy": [dot(right=right, forward=0.0 if right == 0 else 3.0)]}, "", tmp_path / "one.png")
    assert len(seen[0][1].texts) == 1


def test_a_label_that_fits_nowhere_is_written_all_the_same(tmp_path, seen):
    draw(
        {"copy": [dot("a name that is wider than the picture " * 9), dot("short", right=9)]}, "", tmp_path / "wide.png"
    )
    assert [[label.get_text()[:6] for label in axes.texts] for _, axes, _ in seen] == [["a name", "short"]] * 2
