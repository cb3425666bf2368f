"""Compare how the rules read labelled SMTP replies with their labels: each misread reply, and a confusion table.

    make score                                   # the replies that the rules were written from
    make score FILE=labelled.tsv ARGS='--label gate_meaning --or alt_gate --explain'

FILE is what `ct-stream classify` reads, with a column of labels, and if need be another of labels that will do as well.
Exits with 1 when a reply is read as a reject that no label calls one: a lost company.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ct_stream.cli.shared import print_json, print_table
from ct_stream.ops.classify import LABELS, classify
from ct_stream.ops.troubles import WrongInput
from ct_stream.texts import for_log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Row = Mapping[str, str]

#: The columns of a reading that can be scored, and what each can say.
WORDS = {"meaning": LABELS}
FOUND, USAGE = 1, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How readings compare with labels."""

    confusion: dict[str, dict[str, int]]  #: label, then reading
    wrong: dict[str, int]  #: by reading: how often neither label says so
    misread: list[Row]

    @property
    def rows(self) -> int:
        """Return how many replies were read."""
        return sum(sum(read.values()) for read in self.confusion.values())

    @property
    def exact(self) -> int:
        """Return how many are read as labelled."""
        return sum(self.confusion[word][word] for word in self.confusion)

    @property
    def right(self) -> int:
        """Return how many are read as labelled, or as the label that will do as well."""
        return self.rows - len(self.misread)

    def labelled(self, word: str) -> int:
        """Return how many have this label."""
        return sum(self.confusion[word].values())

    def seen(self, word: str) -> int:
        """Return how many of those with this label are read so."""
        return self.confusion[word][word]


def score(
    rows: Sequence[Row], name: str, *, label: str = "gate_meaning", or_label: str = "alt_gate", reading: str = "meaning"
) -> Score:
    """Compare one column of what was read with one or two columns of labels. Raises WrongInput where a row has none."""
    words = WORDS[reading]
    confusion = {labelled: dict.fromkeys(words, 0) for labelled in words}
    wrong = dict.fromkeys(words, 0)
    misread = []
    for number, row in enumerate(rows, start=1):
        wanted, read = row.get(label, ""), row[reading]
        if wanted not in words:
            raise WrongInput([f"{name}, reply {number}: {label} {wanted!r} is none of {', '.join(words)}"])
        confusion[wanted][read] += 1
        if read not in (wanted, row.get(or_label, "")):
            wrong[read] += 1
            misread.append(row)
    return Score(confusion=confusion, wrong=wrong, misread=misread)


def read_file(path: Path) -> list[Row]:
    """Return the rows of a file with what the rules read in each. Raises WrongInput."""
    readings = classify(path.read_text(encoding="utf-8", errors="backslashreplace"), str(path))
    return [reading.columns(explain=True) for reading in readings]


def print_score(result: Score, *, label: str, or_label: str, reading: str, explain: bool) -> None:
    """Print each misread reply, the table, and the figures of all."""
    for row in result.misread:
        wanted = " or ".join(word for word in (row[label], row.get(or_label, "")) if word)
        said = f"{row['stage']} {row['code']} {row['enhanced']} {row['text']}"
        print(for_log(f"read as {row[reading]} by {row['rule']}, labelled {wanted}: {said}"))
        if explain:
            print(for_log(f"  {row['rule_why']} ({row['rule_source']})"))
    table = [
        (word, *read.values(), f"{result.seen(word)} of {result.labelled(word)}")
        for word, read in result.confusion.items()
    ]
    table.append(("wrongly", *result.wrong.values(), ""))
    print_table(["label", *(f"read {word}" for word in result.confusion), "seen"], table, empty="no replies")
    share = f"{result.right / result.rows:.1%}" if result.rows else "none"
    print(f"{result.rows} replies: {result.exact} exact, {result.right} exact or alternative ({share})")


def main() -> int:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.score_replies", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--label", default="gate_meaning", metavar="COLUMN", help="what people say (gate_meaning)")
    parser.add_argument("--or", dest="or_label", default="alt_gate", metavar="COLUMN", help="or else (alt_gate)")
    parser.add_argument("--reading", default="meaning", choices=WORDS, help="the column that is compared (meaning)")
    parser.add_argument("--explain", action="store_true", help="say why each rule reads so, and where it comes from")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    columns = {"label": options.label, "or_label": options.or_label, "reading": options.reading}
    try:
        result = score(read_file(options.file), str(options.file), **columns)
    except (OSError, WrongInput) as error:
        for problem in error.problems if isinstance(error, WrongInput) else [str(error)]:
            print(problem, file=sys.stderr)
        return USAGE
    if options.json:
        print_json(
            {
                "rows": result.rows,
                "exact": result.exact,
                "exact_or_alternative": result.right,
                "wrong": result.wrong,
                "confusion": result.confusion,
                "misread": [dict(row) for row in result.misread],
            }
        )
    else:
        print_score(result, **columns, explain=options.explain)
    return FOUND if result.wrong.get("reject") else 0


if __name__ == "__main__":
    sys.exit(main())
