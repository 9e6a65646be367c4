"""How much memory and time `ganlib sample` takes for rows, and whether each row keeps to types, ranges and decimals.

    python tests/bench/rows.py GENERATOR [--rows 10000 1000000] [--out rows.csv]

GENERATOR is the folder of an exported generator of tables. Each number of rows is written by a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd


def written(generator: Path, rows: int, out: Path) -> tuple[float, float]:
    """`(peak MiB, CPU seconds)` of the command."""
    code = (
        "import resource, sys; from typer.testing import CliRunner; from pipelines.cli import app; "
        "done = CliRunner().invoke(app, ['sample', *sys.argv[1:]]); assert done.exit_code == 0, done.output; "
        "use = resource.getrusage(resource.RUSAGE_SELF); print(use.ru_maxrss / 1024, use.ru_utime + use.ru_stime)"
    )
    command = [sys.executable, "-c", code, str(generator), "-n", str(rows), "-o", str(out)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(printed[-2]), float(printed[-1])


def strays(generator: Path, out: Path) -> dict[str, int]:
    """By column, how many values are out of range, of another type or of more decimals than the training rows'."""
    from ganlib.export import load_generator

    columns = load_generator(generator).spec.sample.columns
    found = dict.fromkeys((column.name for column in columns), 0)
    for frame in pd.read_csv(out, chunksize=50_000, dtype=str):
        assert list(frame) == list(found)
        for column in columns:
            values = frame[column.name].dropna()
            lost = 0 if column.missing else int(frame[column.name].isna().sum())
            if column.categories:
                known = {word.lower() for word in column.categories}
                found[column.name] += lost + int((~values.str.lower().isin(known)).sum())
            elif column.type in ("number", "integer"):
                numbers = values.astype(float)
                wrong = (numbers < column.low) | (numbers > column.high)
                if column.decimals is not None:
                    wrong |= numbers != np.round(numbers, column.decimals)
                found[column.name] += lost + int(wrong.sum())
            else:
                dates = pd.to_datetime(values, format=column.formats[0] if column.formats else "ISO8601", utc=True)
                seconds = (dates - pd.Timestamp(0, tz="UTC")).dt.total_seconds()  # refuses what is no such date
                wrong = (seconds < column.low) | (seconds > column.high)
                if column.step:
                    wrong |= np.remainder(seconds, column.step) != 0
                found[column.name] += lost + int(wrong.sum())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generator", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=Path("rows.csv"))
    args = parser.parse_args()
    print("| rows | peak memory, MiB | CPU s | values that stray |\n|---|---|---|---|")
    for rows in args.rows:
        memory, seconds = written(args.generator, rows, args.out)
        print(
            f"| {rows:,} | {memory:.0f} | {seconds:.0f} | {sum(strays(args.generator, args.out).values())} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
