"""Set a fifth of the labelled SMTP replies aside, so that the rules can be scored on replies they were not written for.

Stratified by provider: the rows are ordered by provider, shuffled inside each by a fixed seed, and every fifth is
set aside from a start that the seed gives too. Whoever writes rules reads `smtp_replies.tsv`, never the other file.

    python tools/split_replies.py LABELLED.tsv tests/data
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

SEED = 20261123  # never changed: another seed would set aside replies that a rule was written for
EVERY = 5


def split(rows: list[str], provider_column: int) -> tuple[list[str], list[str]]:
    """Return the rows to write rules from and those set aside, each in the order of the file."""
    chance = random.Random(SEED)
    drawn = sorted(range(len(rows)), key=lambda number: (rows[number].split("\t")[provider_column], chance.random()))
    aside = set(drawn[chance.randrange(EVERY) :: EVERY])
    return (
        [row for number, row in enumerate(rows) if number not in aside],
        [row for number, row in enumerate(rows) if number in aside],
    )


def main() -> None:
    """Write `smtp_replies.tsv` and `smtp_replies_set_aside.tsv` into the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("labelled", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    header, *rows = args.labelled.read_text(encoding="utf-8").splitlines()
    kept, aside = split(rows, header.split("\t").index("provider"))
    for name, part in (("smtp_replies", kept), ("smtp_replies_set_aside", aside)):
        (args.folder / f"{name}.tsv").write_text("\n".join([header, *part]) + "\n", encoding="utf-8")
        print(f"{name}.tsv: {len(part)} rows")


if __name__ == "__main__":
    main()
