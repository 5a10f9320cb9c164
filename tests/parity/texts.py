"""Twenty texts as people embed them: short and long, with capitals, accents, digits."""

from pathlib import Path

LICENSE = " ".join((Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8").split())  # some 200 tokens

TEXTS = [
    "how long does it take to boil an egg",
    "The kettle whistled twice before anybody got up.",
    "What is the boiling point of water at 3,000 metres?",
    "Ferries leave the harbour every forty minutes, except on Sundays.",
    "Le café de la place ferme à vingt-deux heures.",
    "A lichen is a partnership between a fungus and an alga.",
    "who wrote the first dictionary of English",
    "Rust forms where iron, water and oxygen meet; salt makes it quicker.",
    "Ångström and Røntgen both gave their names to units.",
    "NASA launched the probe in 1977, and it is still sending data.",
    "The bridge was closed for repairs, so the buses took the long way round by the old mill.",
    "Which vitamins are lost when vegetables are cooked?",
    "She sold the orchard but kept the bees.",
    "Tides are higher at full moon and at new moon, when sun and moon pull along one line.",
    "cheap flights to Reykjavík in March",
    "An octave is the interval between a tone and one of twice its frequency.",
    "Invoices are due within 30 days of receipt (see section 4.2).",
    "Glaciers move a few centimetres to a few metres a day, carrying rock that grinds the valley below.",
    LICENSE,
    f"{LICENSE} {LICENSE}",
]
