from asr.timing import Spread


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(median=2.0, lowest=1.0, highest=3.0)
    assert str(Spread.of([100.4, 98.76])) == "99.6 (98.8 to 100)"
