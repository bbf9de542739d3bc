import importlib.util
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from fedmoe.data import Dataset, load_federation, pooled
from fedmoe.data.sources import read_source
from fedmoe.errors import DataError
from fedmoe.schema import NaturalConfig, TableConfig

GOOD = "height,weight,shop,kind\n1.5,2,Cork,cat\n2.5,3,Bergen,dog\n3.5,-4e1,Cork,cat\n"


def config(path: Path | str | None, **changes: Any) -> TableConfig:
    values: dict[str, Any] = {
        "name": "table",
        "path": None if path is None else str(path),
        "target": "kind",
        "client_column": "shop",
        "task": "auto",
        "standardise": False,
        "on_missing": "error",
        "validation_fraction": 0.1,
        "test_fraction": 0.2,
        "features": None,
        "classes": None,
    }
    return TableConfig(**(values | changes))


def read(path: Path | str | None, **changes: Any) -> Dataset:
    dataset = read_source(config(path, **changes), np.random.default_rng(0))
    assert isinstance(dataset, Dataset)
    return dataset


def written(folder: Path, content: str | bytes, name: str = "mine.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def complaint(path: Path | str | None, **changes: Any) -> str:
    """The message of the error that reading gives; always a single line."""
    with pytest.raises(DataError) as refused:
        read(path, **changes)
    message = str(refused.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------ what is read


def assert_good(dataset: Dataset) -> None:
    np.testing.assert_array_equal(dataset.x_ND, [[1.5, 2], [2.5, 3], [3.5, -40]])
    assert dataset.x_ND.dtype == np.float32
    assert dataset.y_N.dtype == np.int64
    assert dataset.y_N.tolist() == [0, 1, 0]
    assert dataset.task.kind == "classification"
    assert (dataset.task.num_features, dataset.task.num_outputs) == (2, 2)
    assert dataset.task.class_names == ("cat", "dog")
    assert dataset.client_N is not None
    assert dataset.client_N.tolist() == [1, 0, 1]
    assert dataset.client_names == ("Bergen", "Cork")
    assert dataset.origin == "real"


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        GOOD.replace(",", " , ").replace("\n", "\n\n"),
        GOOD.replace("Cork", '"Cork"').rstrip("\n"),
    ],
    ids=["plain", "windows", "byte order mark", "blanks", "quotes"],
)
def test_csv(tmp_path: Path, content: str) -> None:
    assert_good(read(written(tmp_path, content)))


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffy,x\na,1\nb,2\n")
    assert read(path, target="y", client_column=None).task.class_names == ("a", "b")


def test_parquet(tmp_path: Path) -> None:
    table = pa.table(
        {
            "height": pa.array([1.5, 2.5, 3.5]),
            "weight": pa.array([2, 3, -40], pa.int16()),
            "shop": pa.array(["Cork", "Bergen", "Cork"]).dictionary_encode(),
            "kind": ["cat", "dog", "cat"],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "mine.parquet")
    assert_good(read(tmp_path / "mine.parquet"))


def test_npz_of_columns(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "mine.npz",
        height=[1.5, 2.5, 3.5],
        weight=[2, 3, -40],
        shop=["Cork", "Bergen", "Cork"],
        kind=["cat", "dog", "cat"],
    )
    assert_good(read(tmp_path / "mine.npz"))


def test_npz_of_a_feature_matrix(tmp_path: Path) -> None:
    x = np.array([[1.5, 2], [2.5, 3], [3.5, -40]])
    shop = np.array(["Cork", "Bergen", "Cork"])
    np.savez(tmp_path / "mine.npz", x=x, shop=shop, kind=["cat", "dog", "cat"])
    assert_good(read(tmp_path / "mine.npz"))


def test_the_home_folder_and_capital_suffixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, GOOD, "mine.CSV")
    assert_good(read("~/mine.CSV"))


def test_without_a_client_column_it_must_be_dropped_or_is_a_feature(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    assert "column 'shop', line 2: text 'Cork' where a number is needed" in complaint(
        path, client_column=None
    )
    dataset = read(written(tmp_path, "a,y\n1,2\n3,4\n"), target="y", client_column=None)
    assert dataset.client_N is None
    assert dataset.client_names == ()


@pytest.mark.parametrize(
    ("cells", "kind", "names"),
    [
        (["b", "a", "b"], "classification", ("a", "b")),
        (["10", "9", "10"], "classification", ("9", "10")),
        (["1.0", "0", "1"], "classification", ("0", "1")),
        ([str(value) for value in range(20)], "classification", tuple(map(str, range(20)))),
        ([str(value) for value in range(21)], "regression", ()),
        (["1", "2.5"], "regression", ()),
    ],
)
def test_the_rule_for_auto(
    tmp_path: Path, cells: list[str], kind: str, names: tuple[str, ...]
) -> None:
    content = "x,y\n" + "".join(f"1,{cell}\n" for cell in cells)
    dataset = read(written(tmp_path, content), target="y", client_column=None)
    assert dataset.task.kind == kind
    assert dataset.task.class_names == names
    if kind == "classification":
        named = [names[label] for label in dataset.y_N.tolist()]
        assert named == [cell.removesuffix(".0") for cell in cells]
    else:
        assert dataset.y_N.dtype == np.float32
        assert dataset.y_N.tolist() == [[float(cell)] for cell in cells]


@pytest.mark.parametrize(
    ("task", "shape", "outputs"), [("regression", (3, 1), 1), ("classification", (3,), 2)]
)
def test_the_task_can_be_told(
    tmp_path: Path,
    task: Literal["regression", "classification"],
    shape: tuple[int, ...],
    outputs: int,
) -> None:
    path = written(tmp_path, "x,y\n1,3\n2,4\n3,3\n")
    dataset = read(path, target="y", client_column=None, task=task)
    assert dataset.task.kind == task
    assert dataset.y_N.shape == shape
    assert dataset.task.num_outputs == outputs


def test_text_among_numbers_is_a_class_only_on_demand(tmp_path: Path) -> None:
    path = written(tmp_path, "x,y\n1,3\n2,four\n3,3\n")
    told = complaint(path, target="y", client_column=None)
    assert "column 'y', line 3: text 'four' among numbers" in told
    dataset = read(path, target="y", client_column=None, task="classification")
    assert dataset.task.class_names == ("3", "four")


def test_clients_of_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    content = "x,y,who\n1,a,10\n2,b,9\n3,a,10\n"
    dataset = read(written(tmp_path, content), target="y", client_column="who")
    assert dataset.client_names == ("9", "10")
    table = pa.table({"x": [1.0, 2.0, 3.0], "y": ["a", "b", "a"], "who": [10, 9, 10]})
    pyarrow.parquet.write_table(table, tmp_path / "mine.parquet")
    dataset = read(tmp_path / "mine.parquet", target="y", client_column="who")
    assert dataset.client_names == ("9", "10")
    assert dataset.client_N is not None
    assert dataset.client_N.tolist() == [1, 0, 1]


def test_large_client_numbers_stay_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=[[1.0], [2.0]], y=[0, 1], who=[2**60, 2**60 + 1])
    dataset = read(tmp_path / "mine.npz", target="y", client_column="who")
    assert dataset.client_names == (str(2**60), str(2**60 + 1))


def test_booleans_decimals_and_dates_in_parquet(tmp_path: Path) -> None:
    day = pa.array([0, 1, 1], pa.date32())
    table = pa.table(
        {
            "flag": [True, False, True],
            "price": [Decimal("1.50"), Decimal("2.50"), Decimal("3.25")],
            "day": day,
            "y": [True, False, False],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "mine.parquet")
    dataset = read(tmp_path / "mine.parquet", target="y", client_column="day")
    assert dataset.x_ND.tolist() == [[1, 1.5], [0, 2.5], [1, 3.25]]
    assert dataset.task.class_names == ("0", "1")
    assert dataset.client_names == ("1970-01-01", "1970-01-02")


def test_a_table_becomes_a_federation_with_standardised_features(tmp_path: Path) -> None:
    lines = [f"{row},{row % 7},{row % 3},{row * 0.5}" for row in range(60)]
    path = written(tmp_path, "a,b,shop,y\n" + "\n".join(lines))
    natural = NaturalConfig(name="natural", min_samples=5)
    federation = pooled(load_federation(config(path, target="y", standardise=True), natural, 0))
    assert federation.client_names == ("0", "1", "2")
    train = federation.x_ND[federation.parts["train"].order]
    np.testing.assert_allclose(train.mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(train.std(axis=0), 1.0, atol=1e-6)


# --------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ("", {}, "the file is empty"),
        ("\n\n", {}, "the file is empty"),
        ("height,weight,shop,kind\n", {}, "it has columns but no rows"),
        (GOOD, {"target": "knid"}, "no column 'knid' (from data.target); the nearest of its 4"),
        (GOOD, {"target": "knid"}, "is 'kind'"),
        (GOOD, {"target": "????"}, "no column '????' (from data.target); the nearest of its 4"),
        (GOOD, {"client_column": "shops"}, "no column 'shops' (from data.client_column)"),
        (GOOD, {"client_column": "kind"}, "both data.target and data.client_column"),
        (GOOD.replace("2.5", "tall"), {}, "column 'height', line 3: text 'tall' where a number"),
        (GOOD.replace("2.5", "1_000"), {}, "column 'height', line 3: text '1_000' where a number"),
        (GOOD.replace("2.5", ""), {}, "column 'height', line 3: an empty cell"),
        (GOOD.replace("2.5", "  "), {}, "column 'height', line 3: an empty cell"),
        (GOOD.replace("2.5", "NaN"), {}, "column 'height', line 3: not a number (NaN)"),
        (GOOD.replace("2.5", "-nan"), {}, "column 'height', line 3: not a number (NaN)"),
        (GOOD.replace("2.5", "-inf"), {}, "column 'height', line 3: -inf is infinite or too large"),
        (GOOD.replace("2.5", "1e39"), {}, "column 'height', line 3: 1e+39 is infinite or too"),
        (GOOD.replace("dog", ""), {}, "column 'kind', line 3: an empty cell"),
        (GOOD.replace("Bergen", ""), {}, "column 'shop', line 3: an empty cell"),
        (GOOD.replace("dog", "cat"), {}, "column 'kind': a single class, 'cat', in all 3 rows"),
        (GOOD.replace("2.5,", ""), {}, "line 3: 3 cells, the header has 4"),
        (GOOD.replace("2.5,", "2,5,"), {}, "line 3: 5 cells, the header has 4"),
        (GOOD.replace("weight", "height"), {}, "two columns are called 'height'"),
        (GOOD.replace("height", ""), {}, "column 1 has no name"),
        (GOOD.replace("Bergen", '"Bergen'), {}, "line 3: not valid CSV: unexpected end of data"),
        (GOOD.replace("Cork", "Malmö").encode("latin-1"), {}, "line 2: not UTF-8"),
        (GOOD.encode("utf-16"), {}, "line 1: not UTF-8"),
        (GOOD, {"target": "kind", "task": "regression"}, "'kind', line 2: text 'cat' where"),
        (GOOD, {"target": "height", "client_column": None}, "column 'shop', line 2: text 'Cork'"),
        (
            "x,y\n1,1\n2,2.5\n3,1\n",
            {"target": "y", "client_column": None, "task": "classification"},
            "column 'y', line 3: 2.5 is no class",
        ),
        ("y\n1\n2\n", {"target": "y", "client_column": None}, "no feature columns"),
        ("x,y\n1,inf\n2,3\n", {"target": "y", "client_column": None}, "'y', line 2: inf is"),
        (GOOD.replace("2.5", "z" * 99), {}, "line 3: text '" + "z" * 37 + "...' where"),
    ],
)
def test_bad_csv(
    tmp_path: Path, content: str | bytes, changes: dict[str, Any], message: str
) -> None:
    path = written(tmp_path, content)
    told = complaint(path, **changes)
    assert message in told
    assert "both data" in told or str(path) in told
    # A malformed file is never replaced by something else.
    assert complaint(path, on_missing="synthetic", **changes) == told


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    content = '\nx,note,y\n\n1,"two\nlines",a\n\noops,plain,b\n'
    path = written(tmp_path, content)
    told = complaint(path, target="y", client_column="note")
    assert "column 'x', line 7: text 'oops'" in told
    ragged = written(tmp_path, content + "1,2\n")
    assert "line 8: 2 cells, the header has 3" in complaint(ragged)


def test_settings_that_are_missing() -> None:
    assert complaint(None) == "table: data.path is not set"
    assert complaint("mine.csv", target=None) == "table: data.target is not set"


def test_files_that_are_missing_or_of_another_kind(tmp_path: Path) -> None:
    told = complaint(tmp_path / "none.csv")
    assert told == f"table: there is no file {tmp_path / 'none.csv'}; check data.path"
    assert "unknown kind of file '.xlsx'; known are .csv, .parquet, .npz" in complaint("a.xlsx")
    (tmp_path / "folder.csv").mkdir()
    assert "a folder, not a file" in complaint(tmp_path / "folder.csv")
    assert "data.path '~nobody-here/a.csv'" in complaint("~nobody-here/a.csv")


def test_nothing_stands_in_for_a_missing_table(tmp_path: Path) -> None:
    told = complaint(tmp_path / "none.csv", on_missing="synthetic")
    assert "there is no file" in told
    assert "the shape of the data is not known without them" in told


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "x", "mine.parquet")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = complaint(path)
    assert told.endswith("needs pyarrow, which is not installed; pip install 'fedmoe[parquet]'")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [1.0, None], "kind": [0, 1]}, "column 'x', row 2: an empty cell"),
        ({"x": [1, None], "kind": [0, 1]}, "column 'x', row 2: an empty cell"),
        ({"x": [1.0, float("nan")], "kind": [0, 1]}, "column 'x', row 2: not a number (NaN)"),
        ({"x": [1.0, float("inf")], "kind": [0, 1]}, "column 'x', row 2: inf is infinite"),
        ({"x": [[1.0], [2.0]], "kind": [0, 1]}, "column 'x', row 1: text '[1.0]' where a number"),
        ({"x": [1.0, 2.0], "kind": ["a", None]}, "column 'kind', row 2: an empty cell"),
        ({"x": pa.array([], pa.float64()), "kind": pa.array([], pa.int8())}, "but no rows"),
        ({}, "no columns"),
    ],
)
def test_bad_parquet(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = tmp_path / "mine.parquet"
    pyarrow.parquet.write_table(pa.table(columns), path)
    assert message in complaint(path, client_column=None)


def test_parquet_that_is_none(tmp_path: Path) -> None:
    assert "not a readable Parquet file" in complaint(written(tmp_path, GOOD, "mine.parquet"))
    assert "not a readable Parquet file" in complaint(written(tmp_path, "", "mine.parquet"))


def test_parquet_with_two_columns_of_a_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    pyarrow.parquet.write_table(table, tmp_path / "mine.parquet")
    assert "two columns are called 'x'" in complaint(tmp_path / "mine.parquet")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 2)), "kind": [0, 1]}, "different lengths: 'x' has 3, 'kind' has 2"),
        ({"x": np.array([{}, 1], dtype=object), "kind": [0, 1]}, "array 'x': not readable as NPZ"),
        ({"x": np.zeros((2, 2, 2)), "kind": [0, 1]}, "array 'x' has shape (2, 2, 2)"),
        ({"z": np.zeros((2, 2)), "kind": [0, 1]}, "array 'z' has shape (2, 2)"),
        ({"x": np.zeros((2, 2)), "kind": 1}, "array 'kind' has shape ()"),
        ({"x": np.zeros(2, dtype=complex), "kind": [0, 1]}, "array 'x' has dtype complex128"),
        ({"x": np.array([[0, 1], [0, np.nan]]), "kind": [0, 1]}, "column 'x[1]', row 2: not a"),
        ({"x": ["1", "a"], "kind": [0, 1]}, "column 'x', row 2: text 'a' where"),
        ({"x": np.zeros((0, 2)), "kind": []}, "but no rows"),
        ({}, "no columns"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    assert message in complaint(path, client_column=None)


def test_npz_that_is_none(tmp_path: Path) -> None:
    assert "not readable as NPZ" in complaint(written(tmp_path, GOOD, "mine.npz"))
    assert "not readable as NPZ" in complaint(written(tmp_path, "", "mine.npz"))
    np.savez(tmp_path / "whole.npz", x=np.zeros((50, 2)), kind=np.arange(50))
    half = (tmp_path / "whole.npz").read_bytes()[:400]
    assert "not readable as NPZ" in complaint(written(tmp_path, half, "mine.npz"))
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    assert "not an NPZ file but a single array" in complaint(tmp_path / "single.npz")


# ------------------------------------------------------------------ what a table must look like


def test_features_that_are_told_are_taken_in_their_order(tmp_path: Path) -> None:
    path = written(tmp_path, "b,a,kind\n1,2,x\n3,4,y\n")
    found = read(path, client_column=None, features=("a", "b"))
    np.testing.assert_array_equal(found.x_ND, [[2, 1], [4, 3]])


def test_classes_that_are_told_keep_their_order_and_number(tmp_path: Path) -> None:
    path = written(tmp_path, "a,kind\n1,yes\n2,no\n3,yes\n")
    found = read(path, client_column=None, classes=("yes", "maybe", "no"))
    assert found.task.class_names == ("yes", "maybe", "no") and found.task.num_outputs == 3
    assert found.y_N.tolist() == [0, 2, 0]
    one = written(tmp_path, "a,kind\n1,no\n", "one.csv")  # a site may know but one of them
    assert read(one, client_column=None, classes=("yes", "no")).y_N.tolist() == [1]
    whole = written(tmp_path, "a,kind\n1,2\n2,1\n", "whole.csv")
    assert read(whole, client_column=None, classes=("1", "2")).y_N.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"features": ("a", "c")}, "no column 'c' (from data.features)"),
        ({"features": ("a",)}, "column 'b' is none of data.features: a"),
        ({"classes": ("x", "z")}, "'y' is none of data.classes: x, z"),
    ],
)
def test_a_table_that_looks_otherwise_is_refused(
    tmp_path: Path, told: dict[str, Any], said: str
) -> None:
    path = written(tmp_path, "b,a,kind\n1,2,x\n3,4,y\n")
    with pytest.raises(DataError) as error:
        read(path, client_column=None, **told)
    assert said in str(error.value) and str(path) in str(error.value)
