"""Runs of fedmoe in processes of their own, each finished one kept at once."""

import io
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from benchmarks.study.outcomes import Outcome, Point, Records, Score
from benchmarks.study.runs import Run

Execute = Callable[[Sequence[str]], Outcome | None]


def run_all(
    runs: Sequence[Run],
    records: Records,
    workers: int,
    on_done: Callable[[], object],
    execute: Execute | None = None,
) -> None:
    """Do the runs that the records do not know.

    Args:
        runs: in this order.
        records: get each outcome as soon as it is there.
        workers: processes.
        on_done: called after each run.
        execute: does one; importable, since other processes call it.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once the processes have ended.
    """
    missing = {run.key: run for run in runs if run not in records}
    if not missing:
        return
    context = get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(workers, context, _begin, (stop,)) as pool:
        done = execute or execute_run
        futures = {pool.submit(_unless_stopped, done, r.words): r for r in missing.values()}
        try:
            for future in as_completed(futures):
                outcome = future.result()
                if outcome is None:  # the process got the Ctrl-C that is on its way to us
                    raise KeyboardInterrupt
                records.add(futures[future], outcome)
                on_done()
        except BaseException:
            stop.set()  # some runs are beyond recall, in the queue to the processes
            pool.shutdown(cancel_futures=True)
            raise


_stop: Event | None = None  # of this process, if it is one that does runs


def _begin(stop: Event) -> None:
    """An idle process leaves Ctrl-C to its parent; a run of fedmoe ends after its round."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _unless_stopped(execute: Execute, words: Sequence[str]) -> Outcome | None:
    return None if _stop is not None and _stop.is_set() else execute(words)


def execute_run(words: Sequence[str]) -> Outcome | None:
    """Do one run and forget its directory.

    Returns:
        `None` if it was interrupted.
    """
    # Late: the study's own process needs neither torch nor flwr.
    from fedmoe.config import load_config
    from fedmoe.errors import FedmoeError
    from fedmoe.simulations import run_experiment
    from fedmoe.tracking import RunDirectory

    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="fedmoe-study-") as folder:
        path = Path(folder, "run")
        try:
            with redirect_stdout(io.StringIO()):
                summary = run_experiment(load_config(words), path)
        except KeyboardInterrupt:
            return None
        except FedmoeError as error:
            return Outcome.failed(str(error), time.process_time() - began)
        rounds = RunDirectory.reopen(path).read_lines("metrics.jsonl")
    return outcome_of(summary, rounds, time.process_time() - began)


def outcome_of(
    summary: dict[str, Any], rounds: Sequence[dict[str, Any]], seconds: float
) -> Outcome:
    """What the study keeps of a run.

    Args:
        summary: its `summary.json`.
        rounds: its `metrics.jsonl`.
        seconds: that it took.
    """
    if summary["missing"]:
        return Outcome.failed(f"{summary['missing']} clients without scores", seconds)
    clients = summary["data"]["clients"]
    traffic = training_traffic(rounds)
    course, total = [], 0.0
    for line, (up, down) in zip(rounds, traffic, strict=True):
        total += (up + down) / clients
        test, validation = own_accuracy(line["test"]), own_accuracy(line["validation"])
        if test is not None and validation is not None:
            course.append(Point(line["round"], total, validation, test))
    if not course or course[-1].round != rounds[-1]["round"]:
        return Outcome.failed("its scores are not finite", seconds)
    each = clients * len(rounds)
    return Outcome(
        validation=course[-1].validation,
        validation_loss=own_loss(rounds[-1]["validation"]),
        last=scores_of(summary["final"]),
        best=scores_of(summary["best"]),
        best_round=summary["best"]["round"],
        up=sum(up for up, _ in traffic) / each,
        down=sum(down for _, down in traffic) / each,
        course=course,
        routing=summary.get("routing"),
        seconds=seconds,
    )


def training_traffic(rounds: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Bytes up and down of each round without its evaluation.

    Those of an evaluated round are taken to be those of the round before or, failing that, of the
    next that was not evaluated; where all rounds were, evaluation is counted.
    """
    plain = [line["bytes"] for line in rounds if line["test"] is None]
    if not plain:
        plain = [line["bytes"] for line in rounds]
    traffic, known = [], plain[0]
    for line in rounds:
        if line["test"] is None:
            known = line["bytes"]
        traffic.append((float(known["up"]), float(known["down"])))
    return traffic


def own_accuracy(scores: dict[str, Any] | None) -> float | None:
    """Mean accuracy, or mean squared error, of the method's own model."""
    found = scores_of(scores or {})
    own = found.get("personalised") or found.get("global")
    return own.mean if own else None


def own_loss(scores: dict[str, Any]) -> float | None:
    """Mean loss of the same model; `None` if it is not a number."""
    own = scores.get("personalised") or scores.get("global") or {}
    loss = own.get("loss", {}).get("mean")
    return None if loss is None or loss != loss else float(loss)


def scores_of(scores: dict[str, Any]) -> dict[str, Score]:
    """The models' accuracies in a part of a summary; one that is not a number is left out.

    Of a regression it is the mean squared error.
    """
    found = {}
    for which in ("global", "personalised"):
        own = scores.get(which) or {}
        score = own.get("accuracy", own.get("mse"))
        if score and score["mean"] is not None and score["mean"] == score["mean"]:
            found[which] = Score(score["mean"], score["worst_decile"], score["std"])
    return found


def prepare_environment(environment: dict[str, str]) -> None:
    """What the processes inherit: one thread each, and no keys from the environment.

    Raises:
        ValueError: `FED_MOE_*` variables would change the runs behind the study's back.
    """
    if names := sorted(name for name in environment if name.startswith("FED_MOE_")):
        raise ValueError(f"{names[0]} is set: unset it, or the runs are not those of the study")
    os.environ.update(environment)
