import json
from pathlib import Path
from typing import Any

import pytest

from fedmoe.report import main, print_sweep


def stats(mean: float) -> dict[str, float]:
    return {"mean": mean, "worst_decile": mean - 0.1, "std": 0.05}


def summary(mean: float, measure: str = "accuracy", **changes: Any) -> dict[str, Any]:
    parts = {"global": {measure: stats(mean)}, "personalised": None}
    return {
        "name": "a",
        "status": "completed",
        "rounds": 3,
        "final": parts,
        "best": parts | {"round": 2},
        "bytes": {"up": 10_000, "down": 2_500},
        "seconds": 3.2,
        "data": {"name": "digits", "origin": "real", "clients": 20, "samples": 1797},
        "objective": mean,
    } | changes


def config(seed: int = 0, strategy: str = "fedavg", rate: float = 0.1, **more: Any) -> Any:
    chosen = {"name": strategy} | ({"mu": 0.5} if strategy == "fedprox" else {})
    return {
        "name": f"a{seed}",
        "resume": None,
        "seed": seed,
        "strategy": chosen,
        "training": {"learning_rate": rate, "momentum": 0.9},
    } | more


def job(sweep: Path, name: str, settings: Any = None, result: Any = None) -> None:
    folder = sweep / name
    (folder / ".hydra").mkdir(parents=True)
    for file, value in (("config.json", settings), ("summary.json", result)):
        if value is not None:
            (folder / file).write_text(json.dumps(value))


def table(text: str, title: str) -> list[list[str]]:
    """The cells of one Markdown table, headings first."""
    body = text.split(f"## {title}")[1].split("\n## ")[0]
    rows = [line for line in body.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows if "---" not in row
    ]


def test_a_sweep_over_a_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, rate in ((2, 0.2), (10, 0.3), (1, 0.1)):
        job(tmp_path, str(number), config(rate=rate), summary(rate * 2))
    (tmp_path / "notes").mkdir()
    assert main([str(tmp_path)]) == 0
    headings, *rows = table((tmp_path / "sweep.md").read_text(), "3 jobs")
    assert headings == [
        "job",
        "training.learning_rate",
        "status",
        "global accuracy (worst decile)",
        "bytes",
        "time",
    ]
    assert rows == [
        ["1", "0.1", "completed", "0.200 (0.100)", "12.5 kB", "3.20 s"],
        ["2", "0.2", "completed", "0.400 (0.300)", "12.5 kB", "3.20 s"],
        ["10", "0.3", "completed", "0.600 (0.500)", "12.5 kB", "3.20 s"],
    ]
    output = capsys.readouterr().out
    assert "0.400 (0.300)" in output
    assert "Mean ±" not in output
    assert json.loads((tmp_path / "sweep.json").read_text())["seeds"] == []


def test_seeds_are_averaged_per_remaining_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [("fedavg", 0, 0.5), ("fedavg", 1, 0.7), ("fedprox", 0, 0.8), ("fedprox", 1, 0.8)]
    for number, (strategy, seed, mean) in enumerate(cases):
        job(tmp_path, str(number), config(seed, strategy), summary(mean))
    job(tmp_path, "4", config(2, "fedavg"), summary(0.0, status="interrupted"))
    print_sweep(tmp_path)
    headings, *rows = table((tmp_path / "sweep.md").read_text(), "Mean ±")
    assert headings == [
        "strategy",
        "seeds",
        "global accuracy",
        "global accuracy (worst decile)",
    ]
    # The sample standard deviation of 0.5 and 0.7 is 0.2 / sqrt(2).
    assert rows == [
        ["fedavg", "2", "0.600 ± 0.141", "0.500 ± 0.141"],
        ["fedprox", "2", "0.800 ± 0.000", "0.700 ± 0.000"],
    ]
    first = json.loads((tmp_path / "sweep.json").read_text())["seeds"][0]
    assert first["jobs"] == ["0", "1"]
    assert first["settings"] == {"strategy.name": "fedavg"}
    assert first["scores"][0] == {
        "model": "global",
        "measure": "accuracy",
        "statistic": "mean",
        "mean": pytest.approx(0.6),
        "std": pytest.approx(0.02**0.5),
    }
    assert "0.600 ± 0.141" in capsys.readouterr().out


def test_what_follows_from_a_choice_is_not_listed_unless_it_varies(tmp_path: Path) -> None:
    job(tmp_path, "0", config(strategy="fedavg"), summary(0.5))
    job(tmp_path, "1", config(strategy="fedprox"), summary(0.6))
    print_sweep(tmp_path)
    assert json.loads((tmp_path / "sweep.json").read_text())["settings"] == ["strategy.name"]

    settings = config() | {"strategy": {"name": "fedprox", "mu": 2.0}}
    job(tmp_path, "2", settings, summary(0.6))
    print_sweep(tmp_path)
    assert json.loads((tmp_path / "sweep.json").read_text())["settings"] == [
        "strategy.mu",
        "strategy.name",
    ]
    cells = [row[1] for row in table((tmp_path / "sweep.md").read_text(), "3 jobs")[1:]]
    assert cells == ["-", "0.5", "2.0"]


def test_failed_jobs_say_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job(tmp_path, "0", config(0), summary(0.5))
    job(tmp_path, "1", config(1), {"status": "failed", "reason": "no | data"})
    job(tmp_path, "2", config(2), {"status": "failed: out of memory"})
    job(tmp_path, "3", config(3), {"status": "failed"})
    job(tmp_path, "4")
    job(tmp_path, "5", config(5), [1])
    print_sweep(tmp_path)
    assert "\njob 2 failed: out of memory\n" in capsys.readouterr().out
    jobs = json.loads((tmp_path / "sweep.json").read_text())["jobs"]
    assert [each["status"] for each in jobs] == ["completed"] + ["failed"] * 5
    reasons = [each["reason"] for each in jobs]
    assert reasons[:4] == [None, "no | data", "out of memory", "see its log"]
    assert reasons[4].startswith("no summary.json")
    assert reasons[5] == "damaged summary.json: not a JSON object"
    text = (tmp_path / "sweep.md").read_text()
    assert "| 1 | 1 | failed | - | - | - |" in text
    assert "| 4 | - | failed | - | - | - |" in text
    assert "\n- job 1 failed: no | data\n" in text
    assert "Mean ±" not in text


def test_mixed_tasks_get_a_column_each(tmp_path: Path) -> None:
    job(tmp_path, "0", config(data={"name": "digits"}), summary(0.5))
    job(tmp_path, "1", config(data={"name": "flights"}), summary(2.5, "mse"))
    print_sweep(tmp_path)
    headings, first, second = table((tmp_path / "sweep.md").read_text(), "2 jobs")
    assert headings[3:5] == ["global accuracy (worst decile)", "global mse (worst decile)"]
    assert first[3:5] == ["0.500 (0.400)", "-"]
    assert second[3:5] == ["-", "2.500 (2.400)"]


def test_a_diverged_seed_is_not_averaged_away(tmp_path: Path) -> None:
    broken = summary(0.5)
    broken["final"] = {"global": {"accuracy": dict.fromkeys(stats(0.0))}, "personalised": None}
    job(tmp_path, "0", config(0), summary(0.5))
    job(tmp_path, "1", config(1), broken)
    print_sweep(tmp_path)
    assert table((tmp_path / "sweep.md").read_text(), "Mean ±")[1:] == [["2", "-", "-"]]


def test_a_pipe_gets_a_line_per_job_however_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        job(tmp_path, str(number), config(data={"path": "z" * 90 + str(number)}), summary(0.5))
    print_sweep(tmp_path)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = f"0 {'z' * 90}0 completed 0.500 (0.400) 12.5 kB 3.20 s"
    assert expected.split() in rows


def test_markdown_cells_cannot_break_the_table(tmp_path: Path) -> None:
    for number in range(2):
        job(tmp_path, str(number), config(data={"path": f"a|b\n{number}"}), summary(0.5))
    print_sweep(tmp_path)
    assert "| 1 | a\\|b 1 | completed |" in (tmp_path / "sweep.md").read_text()


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(summary(0.5)))
    assert main([str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("a: completed after 3 rounds\n")
    assert not (tmp_path / "sweep.md").exists()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (None, "", "neither a run nor a sweep"),
        ("RUN", "", "the run was killed, or still runs"),
        ("summary.json", "{", "damaged summary"),
        ("summary.json", "{}", "damaged summary"),
    ],
)
def test_no_results_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str | None, content: str, words: str
) -> None:
    if file:
        (tmp_path / file).write_text(content)
    assert main([str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert captured.err.count("\n") == 1


def test_no_such_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err == f"error: no such directory: {tmp_path / 'absent'}\n"


def test_a_sweep_tells_what_routers_did(tmp_path: Path) -> None:
    routing = {"importance": [0.5, 0.49, 0.01], "dead_experts": 1, "necessity": 0.25}
    nothing = {"importance": None, "dead_experts": None, "necessity": None}
    for number, told in enumerate((routing, None, nothing)):
        more: dict[str, Any] = {} if told is None else {"routing": told}
        job(tmp_path, str(number), config(rate=number), summary(0.5, **more))
    assert main([str(tmp_path)]) == 0
    headings, *rows = table((tmp_path / "sweep.md").read_text(), "3 jobs")
    assert headings[4:6] == ["experts alive", "routing necessity"]
    assert [row[4:6] for row in rows] == [["2 of 3", "0.250"], ["-", "-"], ["-", "-"]]
    jobs = json.loads((tmp_path / "sweep.json").read_text())["jobs"]
    assert [one["routing"] for one in jobs] == [routing, None, nothing]
