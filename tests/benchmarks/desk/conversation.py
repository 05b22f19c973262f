"""A process that answers questions: one line of JSON each on its standard input, and one on its standard output."""

import json
import sys
from collections.abc import Callable
from typing import Any


def answer(questions: dict[str, Callable[..., Any]]) -> None:
    """Answer until the standard input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer
    for line in sys.stdin:
        question, parameters = json.loads(line)
        print(json.dumps(questions[question](**parameters)), file=answers, flush=True)
