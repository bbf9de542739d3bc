# The study of sparse experts times both ways, and says which one the rule takes.
import pytest

from benchmarks.sparse import Case, main, measure


@pytest.mark.parametrize(
    ("top_k", "features", "by_rule"), [(1, 4, False), (1, 900, True), (0, 900, True)]
)
def test_both_ways_are_timed(top_k: int, features: int, by_rule: bool) -> None:
    case = Case(clients=2, batch=64, features=features, hidden=20, experts=8, top_k=top_k)
    result = measure(case, repeats=1)
    assert result.dense > 0
    assert result.sparse > 0
    assert result.by_rule == by_rule


def test_the_table_has_a_row_for_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--repeats", "1"])
    table = capsys.readouterr().out
    assert "top 2 of 16" in table
    assert "client's 1 of 4" in table
