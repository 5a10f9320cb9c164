import pytest

from e5ref.course import CHAPTERS, check


@pytest.mark.parametrize("exercise", ["9.1", "1.9", "0.1", "", "one", "-1.1"])
def test_an_unknown_exercise(exercise):
    with pytest.raises(KeyError, match=f"the course has 1.1 to {len(CHAPTERS)}.3"):
        check(exercise, 1)
