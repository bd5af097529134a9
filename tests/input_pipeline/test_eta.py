"""Progress lines."""

from input_pipeline import eta


def test_all_items_pass_and_slow_work_says_what_is_left(monkeypatch, capsys):
    clock = iter([0, *range(100, 10_000, 3)])  # three seconds an item, after a slow start
    monkeypatch.setattr(eta.time, "monotonic", lambda: next(clock))
    assert list(eta.track("一二三四五六七", 7, "Reading")) == list("一二三四五六七")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "Reading: 2 of 7, 29%, about 15 s left",
        "Reading: 4 of 7, 57%, about 9 s left",
        "Reading: 6 of 7, 86%, about 3 s left",
    ]


def test_fast_work_is_silent_and_too_low_a_total_does_no_harm(capsys):
    assert list(eta.track(range(5), 2, "Reading")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().out == ""


def test_a_slow_first_item_and_an_unknown_total_do_no_harm(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 9))
    monkeypatch.setattr(eta.time, "monotonic", lambda: next(clock))
    assert list(eta.track("一二三", 0, "Reading")) == list("一二三")
    assert capsys.readouterr().out.splitlines() == ["Reading: 2 in 27 s"]
