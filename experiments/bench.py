"""Measure speed, as ratios within one run.

    python -m experiments.bench
    python -m experiments.bench quick=true rows=vector,single
    python -m experiments.bench strict=true out=/tmp/bench
    python -m experiments.bench check=docs/performance.json

Arguments:
    rows      which rows, by name (default: all but the last three)
                  vector            the vector env with everything on, against CartPole-v1's
                  vector_no_churn   the same with churn off
                  floor             the vector env, against bare numpy doing the same arithmetic
                  single            gym.make of the same shop, against CartPole-v1
                  single_default    gym.make with the default keywords, against CartPole-v1
                  catalogue         the cost of a catalogue of a million items
                  sweep             the vector env over numbers of shoppers and of items
                  training          agents, against stable-baselines3's own route
                  skrl              agent.backend=device, against skrl's PPO on the same torch env
                                    (extra dev)
                  bandit            disjoint LinUCB against mabwiser's (extra dev), and the
                                    shared model at a large catalogue against a small one
                  torch             the compiled torch env, against the vector env on numpy
                  memory            bytes per shopper
                  retrieval         candidates of a million items (extra large): steps, PPO's
                                    training, and the memory that the process took
                  peers             sardine-rec's and recsim-no-tf's environments (needs peers)
                  time_to_score     seconds until 0.9 of the planning oracle, against
                                    stable-baselines3's own route: about an hour; what is
                                    finished is kept in out, and a new run goes on from there
                                    (quick=true: 1 M steps instead of 3 M, 15 minutes)
    device    auto | cpu | cuda | cuda:n; the torch env is measured on the cpu, and there
    clock     wall | cpu: seconds on the wall, or of the processor (default: wall). On a machine
              that is busy with other things the second is fairer; rows with several threads
              are always measured on the wall
    peers     the Python of a virtual environment in which the peers are installed
    out       where performance.json and performance.md go (default: runs/bench)
    add       true: rows that are in out already and are not measured now stay there
    draw      true: measure nothing, write the page in out again from its figures
    check     an older performance.json: exit 1 when a row has lost a quarter of its ratio
    quick     true: fewer steps and rounds, for a look
    strict    true: exit 1 when a row falls short of what is asked of it

Speeds differ between machines and from minute to minute; ratios hardly do. So the two
sides of a row take turns (A B A B ...), and its ratio is the median over the rounds of
each round's own ratio; the smallest and the largest are shown beside it. Actions are
drawn beforehand, both sides warm up, Python's garbage collector rests while the clock
runs, and torch uses one thread where nothing else is said.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from agents.base import resolve_device
from experiments.cli import arguments, entry
from experiments.performance import page
from experiments.performance.measure import CLOCKS, FULL, QUICK, Bench
from experiments.performance.rows import ASKED_FOR, ROWS
from experiments.performance.sides import mabwiser
from recenv.errors import UsageError, unknown

DEFAULTS: dict[str, Any] = {
    "rows": None,
    "device": "auto",
    "clock": "wall",
    "peers": None,
    "out": "runs/bench",
    "add": False,
    "draw": False,
    "check": None,
    "quick": False,
    "strict": False,
}


def main(argv: list[str]) -> None:
    """Measure, print and write; exit 1 where strict=true or check=<file> find fault."""
    asked = arguments(argv, DEFAULTS)
    add, draw, quick, strict = (_flag(asked, name) for name in ("add", "draw", "quick", "strict"))
    names, clock = _names(asked["rows"]), str(asked["clock"])
    if clock not in CLOCKS:
        raise unknown("clock", clock, CLOCKS)
    before = page.read(_path("check", asked["check"])) if asked["check"] is not None else None
    device = resolve_device(str(asked["device"]))
    peers = None if asked["peers"] is None else _path("peers", asked["peers"])
    if "peers" in names and peers is None:
        raise UsageError("whose Python has the peers? pass peers=<python of a venv>")
    if "bandit" in names and not draw:
        mabwiser()  # missed before anything is measured
    out = _directory(asked["out"])
    if add and (out / page.JSON).is_file():
        page.read(out / page.JSON)  # damaged, it is to be told before anything is measured
    if draw:
        report = page.read(out / page.JSON)
    else:
        bench = Bench(QUICK if quick else FULL, device, clock, CLOCKS[clock], out, peers)
        report = page.measure(bench, names) | {"quick": quick}
    measured = report["rows"]
    page.publish(report)
    page.write(page.with_old(report, out / page.JSON) if add else report, out)
    print(f"report: {out / page.PAGE}, {out / page.JSON}")
    short = [row.row for row in measured if row.verdict == "short"] if strict else []
    lost = page.slower(measured, before["rows"]) if before else []
    for what, rows in (("short of what is asked", short), ("slower than before", lost)):
        if rows:
            print(f"{what}: {', '.join(rows)}", file=sys.stderr)
    if short or lost:
        sys.exit(1)


def _names(rows: Any) -> list[str]:
    """The names in ``rows=a,b``, each once; those of the default set where none is given."""
    if rows is None:
        return [name for name in ROWS if name not in ASKED_FOR]
    words = rows if isinstance(rows, list) else str(rows).split(",")
    names = [str(word).strip() for word in words]
    for name in names:
        if name not in ROWS:
            raise unknown("row", name, ROWS)
    return list(dict.fromkeys(names))


def _flag(asked: dict[str, Any], name: str) -> bool:
    value = asked[name]
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, got {value!r}")
    return value


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, (str, int, float)) or not str(value):
        raise UsageError(f"{name} must name a file, got {value!r}")
    return Path(str(value))


def _directory(out: Any) -> Path:
    """The directory ``out``, made before anything is measured."""
    if not isinstance(out, (str, int, float)) or not str(out):
        raise UsageError(f"out must name a directory, got {out!r}")
    path = Path(str(out))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot write to {path}: {reason}: choose another out") from None
    return path


if __name__ == "__main__":
    entry(main, __doc__)
