"""Every tolerance of the tests, with its reason: what of a difference between two results is rounding."""

# The largest absolute difference between two vectors of unit length, each computed in float32 from the same weights.
# Rounding alone gives 1e-7 to 2e-7 after 6 to 12 layers; tanh GELU gives 1e-4.
VECTORS = {"float32": 5e-7, "float64": 1e-12}

# The same at each named point inside the model, relative to the largest value at that point. float32 keeps 6e-8 of a
# number, a product of 1,536 terms some 1e-6, and twelve layers add up a few of those.
POINTS = {"float32": 1e-5, "float64": 1e-12}

# How far ours in float32 may be from ours in float64: the share of VECTORS that is our own rounding.
VECTORS_OWN_ROUNDING = 3e-7

# How far a vector computed in half precision may be from the same in float32, at most and in cosine. bfloat16 keeps 8
# bits of a number, float16 11. On trained weights (docs/run/jax.md) that costs a fifth of the first bound and
# half the second.
VECTORS_HALF = {"bfloat16": 1e-2, "float16": 1.5e-3}
COSINE_HALF = {"bfloat16": 1e-4, "float16": 2e-6}

# Gradients of a loss by a weight, relative to the largest of that weight's gradients: sums over all tokens in float64.
GRADIENTS = 1e-10

# A cosine against one of longer numbers: the result is rounded by half a unit of 1, and in float64 the vectors too.
COSINES = {"float32": 6.1e-8, "float64": 4e-16}

# The model card's score matrix, cosine x 100, against transformers: 1e-4 of a point is 1e-6 of a cosine, what is left
# of VECTORS after summing 384 products.
SCORES = 1e-4

# GELU in float32 against float64, in units in the last place of the true value (measured over every float32 between
# the bounds): 5.7 for x > 0, 9.9 down to -3; further down exp(-x²/2) multiplies the rounding of x² by x²/2, of values
# that are below 4e-3, 1e-8 and 1e-36.
GELU_ULP = {(0.0, 40.0): 6.0, (-3.0, 0.0): 10.0, (-6.0, -3.0): 25.0, (-13.0, -6.0): 80.0}

# GELU in half precision, beside the rounding of its result: 1 + erf is off by a few units of float32 at 1, and half of
# that is multiplied by x, down to -5 or so; beyond it is 0.
GELU_HALF = 6e-7

# GELU in `jax_kernels`, up to these |x|: what its polynomial leaves, times |x|. Half precision rounds off up to 2e-4 of
# a number near 0.1 (bfloat16) or 3e-5 (float16), and up to 1.6e-2 or 2e-3 of one near 5.
GELU_KERNEL = {3.0: 3e-5, 5.0: 6e-5, 40.0: 4e-4}

# A sum of products of half precision that is added up in float32, relative to it or to 1: the rounding of the result,
# half a unit of 2⁻⁷ or 2⁻¹⁰, and a little for the order of the sum and for GELU. Of attention, relative to the result,
# and once more, since softmax's weights are rounded too, to what the values' sizes would give.
PRODUCT_HALF = {"bfloat16": 4.2e-3, "float16": 5.5e-4}

# erfc as the C library gives it, then three products: a few units of float64.
GELU_FLOAT64 = 5e-16

# A normalised row of 1,024 numbers, in units in the last place of its largest: a mean, a variance added up in pairs, a
# root and a quotient give 1.5. Added up one by one, as np.einsum does, numbers of float16 come to 30 in float64.
LAYER_NORM_ULP = 2.5

# softmax rows sum to 1, unit vectors have norm 1: n roundings of half a unit each, n up to 512.
SUM_TO_ONE = {"float32": 2e-6, "float64": 1e-14}

# A score of an evaluation, between 0 and 1, against the same weights in another library: vectors differ by VECTORS, and
# so a rank may change here and there.
EVALUATION = 1e-4

# A sum over pairs of tokens, added up in float64, against the cosine of two vectors: that of vectors in float32 is off
# by a few roundings of theirs.
EXPLAINED = {"float32": 1e-6, "float64": 1e-12}
