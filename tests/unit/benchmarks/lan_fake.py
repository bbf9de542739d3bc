"""A process that takes the place of a server or a client in tests of `benchmarks.lan`."""

import json
import sys
import time
from pathlib import Path

LINE = {"train": 0.5, "evaluate": 0.25, "other": 0.25, "seconds": 1.0}


def main() -> int:
    """Write one round after another, as a server; be there until they are over, as a client."""
    words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    if "rounds" not in words:
        while not Path("over").exists():
            time.sleep(0.01)
        return 0
    if words.get("fails"):
        sys.stderr.write("fedmoe: error: it fails\n")
        return 1
    Path("run").mkdir()
    for number in range(int(words["rounds"])):
        with Path("run", "profile.jsonl").open("a") as stream:
            stream.write(json.dumps(LINE | {"seconds": 1.0 + number}) + "\n")
        time.sleep(0.2)
    Path("over").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
