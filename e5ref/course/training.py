"""Chapter 7, docs/learn/7-training.md: InfoNCE, its gradient, and the pairs that the chapter trains on."""

from collections.abc import Callable
from typing import Any

import numpy as np

from e5ref import numpy_model
from e5ref.course import Verdict, compared
from e5ref.operations import Array

# Questions and answers, written for the course.
PAIRS = [
    tuple(line.split(" | "))
    for line in """\
why is the sky blue | Air scatters the short waves of sunlight more than the long ones.
how do plants eat | Leaves turn light, water and air into sugar.
what causes tides | The moon pulls the water of the sea towards it.
why do leaves turn red in autumn | The green of a tree breaks down when the days get short and cold.
how do fish breathe | Gills take oxygen out of the water.
why does ice float | Frozen water takes up more room than liquid water, so it weighs less.
what is the heart for | A muscle pumps blood through the body, day and night.
how do bees make honey | They carry nectar to the hive and let it dry in cells of wax.
why do we have seasons | The axis of the earth is tilted, so each half gets more sun for half of the year.
what is a volcano | Melted rock from deep below breaks through the crust of the earth.
how does a magnet work | The spins of many electrons point the same way and pull on iron.
why do cats purr | The animal makes a low sound in its throat when it feels well.
what is bread made of | Flour, water, yeast and salt are mixed and baked in an oven.
how do birds fly | Wings push air down, and their shape lifts the animal up.
what is a glacier | A river of ice moves slowly down a mountain.
how do vaccines work | A harmless part of a virus teaches the body to fight it.
what does the liver do | An organ cleans the blood of poison and stores sugar.
why do stars shine | Hydrogen is pressed together to helium and sets energy free.
how is glass made | Sand is melted in a furnace and cooled.
what is inflation | Prices rise, and the same money buys less.
why do we dream | The brain sorts its memories while a person sleeps.
what is democracy | The people choose in elections who will rule them.
how do spiders catch flies | They spin a web of sticky threads and wait.
what is an earthquake | Two plates of the crust slip past each other, and the ground shakes.
how does soap clean | One end of its molecules likes fat, and the other likes water.
why do metals feel cold | They carry heat away from the hand quickly.
what is a fossil | The trace of an animal that died long ago is kept in stone.
how do bats find their way at night | They send out high calls and listen for the echo.
what is the moon made of | Rock and dust cover a small world without air.
why do onions make us cry | Cutting the bulb sets a gas free that stings the eyes.
what is a prime number | It can be divided only by one and by itself.
how does a lens work | Curved glass bends rays of light to one point.
what is gravity | All masses attract each other.
how do snakes move | Scales on the belly grip the ground while muscles push forward.
why do people sneeze | A burst of air throws dust out of the nose.
what is a desert | Hardly any rain falls there, and few plants grow.
how is paper made | Wood is cut to small fibres, cooked and pressed into thin sheets.
what is jazz | Musicians invent new melodies over the chords of a song.
why does iron rust | The metal takes up oxygen where it is wet.
what is a shadow | An object keeps light away from a surface behind it.
how do seeds travel | The wind, the rivers and hungry birds carry them to new soil.
what is a king | A man rules a country because his father did.
how do whales feed | They let the sea flow through plates in their mouth, and small animals stay behind.
what is electricity | Charged particles flow through a wire.
why do bones heal | Living cells fill the crack with new hard tissue.
what is an atom | A tiny kernel is surrounded by electrons.
how do clouds form | Warm air rises, cools, and its water turns to fine drops.
what is a bank | It keeps the savings of people and lends them to others.
why do dogs bark | They warn strangers and call their pack with loud voices.
what is a poem | Words are set in verses with rhythm and rhyme.
how do ants find food | They leave a trail of scent on the ground for others to follow.
what is lightning | A spark jumps from a thundercloud to the ground.
why is the sea salty | Rivers wash minerals out of rocks and carry them down.
what is a court | Judges decide there who is right in a quarrel.
how do muscles work | Fibres slide over each other and become shorter.
what is a comet | A ball of dirty ice grows a tail near the sun.
why do we yawn | Tired people open their mouths wide and take a deep breath.
what is an island | Land with water on all sides.
how is cheese made | Milk is made sour, and the solid part is pressed and stored.
what is a virus | It enters a cell and makes it build copies of the intruder.
why do trees have rings | Wood grows fast in spring and slowly in winter, every year again.
what is an engine | A machine burns fuel and turns wheels.
how do eyes see | Light falls on cells at the back of the ball, and a nerve tells the brain.
what is a contract | Two sides promise each other something, and the law holds them to it.
why does bread rise | Yeast eats sugar and gives off bubbles of gas.
what is a triangle | Three straight lines enclose a figure.
how do frogs grow up | A tadpole loses its tail and gets legs and lungs.
what is a rainbow | Drops split sunlight into its colours.
why do wolves live in packs | Together they can kill prey that is larger than each of them.
what is a museum | Old and rare things are shown there to visitors.
how does a clock work | A swinging weight lets a wheel go one tooth at a time.
what is a tax | Citizens pay a part of their income to the state.
why do ships float | A hull pushes water aside that weighs as much as the vessel.
what is a forest | Many trees cover a large area.
how do plants drink | Roots draw moisture out of the soil.
what is a theory | It explains many observations and has stood many tests.
why do teeth decay | Bacteria make acid out of sweets.
what is a novel | A long story in prose about people who never lived.
how do airplanes turn | Flaps on the wing change how the air flows past.
what is a market | Buyers and sellers meet and agree on prices.
why do we sweat | Water on the skin evaporates and cools the body.
what is a symphony | A long work for orchestra, often in four movements.
how do camels live without water | Fat in the hump and dry waste let the animal save every drop.
what is a strike | Workers stay at home until they are paid better.
why do mountains rise | Two continents collide and fold the rock between them.
what is a gene | A piece of the molecule in each cell says how to build a protein.
how do chameleons change colour | Crystals in the skin move apart and reflect different light.
what is an army | Soldiers are trained to defend a country.
why does the moon change its shape | We see more or less of its lit half in the course of a month.
what is a dictionary | A book lists words and says what they mean.
how do caves form | Rain dissolves limestone under the ground.
what is a vitamin | The body needs a little of this substance and cannot make it.
why do owls hunt at night | Large eyes and silent feathers help them find mice in the dark.
what is a planet | A large body travels around a star.
how is silk made | The thread of a cocoon is unwound and woven to cloth.
what is a refugee | Someone has fled from war to a different country.
""".splitlines()
]


def softmax(scores: Array) -> Array:
    """Softmax of each row."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def loss(scores: Array, temperature: float) -> float:
    """InfoNCE: the mean of -log of the probability of each query's own passage. [B, B] -> a number."""
    return float(-np.log(np.diag(softmax(scores / temperature))).mean())


def others_alone(scores: Array, temperature: float) -> float:
    """InfoNCE whose denominator leaves out the right passage."""
    powers = np.exp(scores / temperature)
    right = np.diag(powers)
    return float(-np.log(right / (powers.sum(axis=1) - right)).mean())


def info_nce(answer: Any) -> str | None:
    """Judge 7.1, the loss of a batch: cosines [B, B], temperature -> a number."""
    random = np.random.default_rng(7)
    cases = [(random.uniform(-1, 1, (size, size)), temperature) for size, temperature in ((3, 0.5), (4, 0.05))]
    mistakes: dict[str, Callable[[Array, float], float | Array]] = {
        "The temperature is missing: divide the scores by it before the softmax.": lambda scores, t: loss(scores, 1),
        "You multiply the scores by the temperature; divide.": lambda scores, t: loss(scores, 1 / t),
        "Your softmax goes down the columns; each query, a row, chooses among the passages.": (
            lambda scores, t: loss(scores.T, t)
        ),
        "You average both directions; here only queries look for passages.": (
            lambda scores, t: (loss(scores, t) + loss(scores.T, t)) / 2
        ),
        "That is the sum over the queries; take the mean.": lambda scores, t: loss(scores, t) * len(scores),
        "The sign is turned over: -log of a probability is positive.": lambda scores, t: -loss(scores, t),
        "You average over all B · B places; only the diagonal counts, each query's own passage.": (
            lambda scores, t: -np.log(softmax(scores / t)).mean()
        ),
        "You take the logarithm of the mean; take the mean of the logarithms.": (
            lambda scores, t: -np.log(np.diag(softmax(scores / t)).mean())
        ),
        "That is the mean probability of the right passage; take -log of each before the mean.": (
            lambda scores, t: np.diag(softmax(scores / t)).mean()
        ),
        "That is the loss of each query; take the mean.": lambda scores, t: -np.log(np.diag(softmax(scores / t))),
        "The denominator must contain the right passage, too.": others_alone,
        "Take the natural logarithm, np.log, not log2.": lambda scores, t: loss(scores, t) / np.log(2),
        "Take the natural logarithm, np.log, not log10.": lambda scores, t: loss(scores, t) / np.log(10),
    }
    if wrong := compared(answer, loss, cases, mistakes):
        return wrong
    far = np.array([[-1.0, 1.0], [1.0, -1.0]])
    with np.errstate(all="ignore"):
        result = answer(far.copy(), 0.001)
    if not np.isclose(result, 2000):
        return f"For a lead of -2 at temperature 0.001 you get {result}, not 2000: subtract each row's maximum first."
    return None


def gradient(scores: Array, temperature: float) -> Array:
    """Differentiate the loss by each cosine. [B, B] -> [B, B]."""
    return (softmax(scores / temperature) - np.eye(len(scores))) / (len(scores) * temperature)


def score_gradient(answer: Any) -> str | None:
    """Judge 7.2, the gradient of the loss: cosines [B, B], temperature -> [B, B]."""
    random = np.random.default_rng(7)
    cases = [(random.uniform(-1, 1, (size, size)), temperature) for size, temperature in ((3, 0.5), (4, 0.05))]
    mistakes: dict[str, Callable[[Array, float], Array]] = {
        "The sign is turned over: the loss falls if the right cosine rises, so the diagonal is negative.": (
            lambda scores, t: -gradient(scores, t)
        ),
        "You do not divide by B; the loss is a mean over B queries.": (
            lambda scores, t: gradient(scores, t) * len(scores)
        ),
        "You divide by B · B; the loss is a mean over B queries.": lambda scores, t: gradient(scores, t) / len(scores),
        "You do not divide by the temperature; a cosine counts 1 / t times.": lambda scores, t: gradient(scores, t) * t,
        "Both divisions are missing, by B and by the temperature.": (
            lambda scores, t: gradient(scores, t) * t * len(scores)
        ),
        "You multiply by the temperature; divide.": lambda scores, t: gradient(scores, t) * t**2,
        "The 1 of each query's own passage is not subtracted from the probabilities.": (
            lambda scores, t: softmax(scores / t) / (len(scores) * t)
        ),
        "You subtract 1 everywhere; only on the diagonal, where each query's own passage is.": (
            lambda scores, t: (softmax(scores / t) - 1) / (len(scores) * t)
        ),
        "Your softmax goes down the columns; each query, a row, chooses among the passages.": (
            lambda scores, t: gradient(scores.T, t).T
        ),
        "The scores are not divided by the temperature inside the softmax.": (
            lambda scores, t: (softmax(scores) - np.eye(len(scores))) / (len(scores) * t)
        ),
    }
    return compared(answer, gradient, cases, mistakes)


def through_length(vectors: Array, gradients: Array) -> Array:
    """Lead a gradient back through the scaling to length 1. [n, D], [n, D] -> [n, D]."""
    units = numpy_model.l2_normalize(vectors)
    along = (units * gradients).sum(axis=1, keepdims=True)
    return (gradients - along * units) / np.linalg.norm(vectors, axis=1, keepdims=True)


def length_gradient(answer: Any) -> str | None:
    """Judge 7.3: vectors [n, D] and the gradient by their unit vectors [n, D] -> the gradient by the vectors."""
    random = np.random.default_rng(7)
    cases = [(3 * random.normal(size=(4, 5)), random.normal(size=(4, 5)))]

    def length(vectors: Array) -> Array:
        return np.linalg.norm(vectors, axis=1, keepdims=True)

    mistakes: dict[str, Callable[[Array, Array], Array]] = {
        "You do not divide by the length of the vector.": lambda z, g: through_length(z, g) * length(z),
        "You divide by the square of the length; divide by the length.": lambda z, g: through_length(z, g) / length(z),
        "You multiply by the length; divide.": lambda z, g: through_length(z, g) * length(z) ** 2,
        "The part along the vector is not taken away: a change of length alone changes nothing.": (
            lambda z, g: g / length(z)
        ),
        "The part along the vector is added; subtract it.": lambda z, g: 2 * g / length(z) - through_length(z, g),
        "The part along the vector is measured with the vector itself; take its unit vector.": (
            lambda z, g: (g - (z * g).sum(axis=1, keepdims=True) * z) / length(z)
        ),
        "You give the part along the vector; subtract it from the gradient.": (
            lambda z, g: g / length(z) - through_length(z, g)
        ),
        "The dot products are summed over the wrong axis: each row has its own, axis=1.": (
            lambda z, g: (g - (z / length(z) * g).sum(axis=0) * z / length(z)) / length(z)
        ),
        "One dot product is taken over all rows; each row has its own, axis=1 with keepdims=True.": (
            lambda z, g: (g - (z / length(z) * g).sum() * z / length(z)) / length(z)
        ),
    }
    return compared(answer, through_length, cases, mistakes)


EXERCISES: dict[str, Verdict] = {"7.1": info_nce, "7.2": score_gradient, "7.3": length_gradient}
