"""Send many malformed bodies to a running `e5ref serve`: python -m tests.measure.serve.malformed URL [NUMBER]."""

import sys
from collections import Counter

import requests
from hypothesis import HealthCheck, given, settings

from tests.serve.malformed import check_answer, requests_of


def main(url: str, number: int) -> None:
    """Send them, and count the statuses."""
    statuses: Counter[int] = Counter()
    with requests.Session() as session:

        @given(requests_of())
        @settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def send(asked: tuple[str, bytes, dict[str, str]]) -> None:
            statuses[check_answer(url, *asked, session)] += 1

        send()
    print(f"{statuses.total():,} bodies: {dict(sorted(statuses.items()))}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
