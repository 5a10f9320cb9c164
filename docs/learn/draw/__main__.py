"""Draw the course's pictures from the real model: `python -m docs.learn.draw [CHAPTER …]`; wants the extra `docs`."""

import sys
from importlib import import_module

from docs.learn.draw.canvas import FOLDER, save
from e5ref.course import CHAPTERS


def main(chapters: list[str]) -> None:
    """Draw the pictures of some chapters; of all if none is named."""
    FOLDER.mkdir(exist_ok=True)
    for chapter in chapters or CHAPTERS:
        for name, figure, description in import_module(f"docs.learn.draw.{chapter}").pictures():
            save(name, figure, description)
            print(f"{name}.svg: {description}")


if __name__ == "__main__":
    main(sys.argv[1:])
