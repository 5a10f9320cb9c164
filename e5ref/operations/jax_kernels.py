"""Two kernels for NVIDIA's Hopper GPUs (H100, H200), in half precision: linear layers, and attention.

XLA lets cuBLAS multiply, which writes a product to memory; a second kernel reads it, adds the bias, takes the GELU and
writes it again. For E5's sizes that takes longer than the product. `linear_layers` adds the bias and takes the GELU
while the product is still in registers, and makes one product of the layers that share an input. `attention` reads
query, key and value once and keeps everything else on the chip, as cuDNN's does, but in tiles that fit E5's heads. Of
several texts in a row, it computes little more than the scores within each.

They are written in Pallas' language for these GPUs, Mosaic GPU. What they deal in: *warpgroups*, 128 threads that
multiply together; *SMEM*, 227 KiB on each multiprocessor; copies between it and memory that run beside the threads; and
*barriers*, at which threads wait for each other. `jax_ops` calls these kernels if the device can run them.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from e5ref.checkpoint.params import Affine

Array = jax.Array
Ref = Any  # an array in memory or SMEM, which a kernel reads and writes
State = tuple[Array, Array, Array]  # of 64 queries: context so far [ROWS, H], highest score and total of weights [ROWS]

ROWS = 64  # of a product, for one warpgroup: what one matrix instruction takes
BLOCK = 64  # columns of what is copied at a time: 128 bytes
KEYS = 128  # whose scores a warpgroup has in registers at a time
WARPGROUPS = 2  # of `linear_layers` that multiply
DOWN, ALONG = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)  # a number of each row, each column of sums
SMEM_BYTES = 227 << 10

# Columns of a tile of the product → blocks of either factor that SMEM has room for.
BLOCKS_AHEAD = {256: 4, 128: 6}

# Successive tiles share their rows of x or their weights, so that these are still in the cache: tiles run up and down
# in stripes of this many.
STRIPE = 8

# Φ(u) - 1/2 is about u · (c₀ + c₁ u² + c₂ u⁴ + …) up to |u| = 4.4, where it is all but ±1/2: the polynomial whose error
# times |u| is least at its worst. XLA's erf takes four times as long.
TAIL = 4.4
COEFFICIENTS = (
    0.39876160,
    -0.066076428,
    0.0096430285,
    -0.0010549926,
    8.4293017e-05,
    -4.7248686e-06,
    1.7408473e-07,
    -3.7540491e-09,
    3.5694291e-11,
)


def gelu(x: Array) -> Array:
    """GELU in float32, off by 6e-5 at most up to |x| = 5, and by 1e-5 of |x| beyond.

    Half precision rounds off more of the positive results, to which the small negative ones are added.
    """
    u = jnp.maximum(jnp.minimum(x, jnp.full_like(x, TAIL)), jnp.full_like(x, -TAIL))
    square = u * u
    series = square * COEFFICIENTS[-1] + COEFFICIENTS[-2]
    for coefficient in COEFFICIENTS[-3::-1]:
        series = series * square + coefficient
    return x * (u * series + 0.5)


def linear_layers(x: Array, layers: Sequence[Affine], *, with_gelu: bool, processors: int | None = None) -> list[Array]:
    """Compute x Wᵀ + b, or GELU(x Wᵀ + b), for several layers with outputs of one size. Sums and GELU are in float32.

    Args:
        x: [..., in] of half precision: all its rows together a multiple of 128, its columns of 64.
        layers: weights [out, in] of the dtype of x and biases [out] of float32; out is a multiple of 128.
        with_gelu: whether GELU follows.
        processors: multiprocessors of the GPU; None asks it.

    Returns:
        [..., out] for each layer, in the dtype of x.
    """
    weight = jnp.concatenate([layer.weight for layer in layers])  # [columns, in]
    bias = jnp.concatenate([layer.bias for layer in layers])  # [columns]
    out = len(bias) // len(layers)
    rows = x.reshape(-1, x.shape[-1])  # [rows, in]
    kernel = plgpu.kernel(
        partial(_linear, width=next(width for width in BLOCKS_AHEAD if out % width == 0), with_gelu=with_gelu),
        out_type=[jax.ShapeDtypeStruct((len(rows), out), x.dtype) for _ in layers],
        grid=(jax.local_devices()[0].core_count if processors is None else processors,),
        grid_names=("processor",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )
    return [output.reshape(*x.shape[:-1], out) for output in kernel(rows, weight, bias)]


def _linear(x: Ref, weight: Ref, bias: Ref, *outputs: Ref, width: int, with_gelu: bool) -> None:
    """On each multiprocessor: take one tile of the product after another.

    x [rows, in], weight [columns, in] and bias [columns] give the outputs, [rows, out] each, side by side. A tile is
    [128, width]. One warpgroup copies blocks of both factors into a ring of SMEM; two multiply them, 64 rows of a tile
    each, and finish their part.
    """
    height = WARPGROUPS * ROWS
    down, across = x.shape[0] // height, weight.shape[0] // width  # tiles
    blocks, ahead = x.shape[1] // BLOCK, BLOCKS_AHEAD[width]
    processor, processors = jax.lax.axis_index("processor"), jax.lax.axis_size("processor")
    warpgroup = jax.lax.axis_index("warpgroup")
    own_tiles = (down * across - processor + processors - 1) // processors

    def position(tile: Array) -> tuple[Array, Array]:  # tiles down, tiles across
        return plgpu.planar_snake(processor + tile * processors, (down, across), 1, STRIPE)

    def for_each_block(tile: Array, do: Callable[[Array, Array], None]) -> None:
        """Run do(block, its slot in the ring)."""
        jax.lax.fori_loop(0, blocks, lambda block, _: do(block, (tile * blocks + block) % ahead), None)

    # [ahead, 128, BLOCK], [ahead, width, BLOCK], [WARPGROUPS, 2, ROWS, BLOCK], and a barrier for each slot of the rings
    def run(x_ring: Ref, weight_ring: Ref, finished: Ref, is_full: Ref, is_free: Ref) -> None:
        def copy_tile(tile: Array, _: None) -> None:
            row, column = position(tile)

            def copy(block: Array, slot: Array) -> None:
                plgpu.barrier_wait(is_free.at[slot])
                for source, first, count, ring in ((x, row, height, x_ring), (weight, column, width, weight_ring)):
                    part = source.at[pl.ds(first * count, count), pl.ds(block * BLOCK, BLOCK)]
                    plgpu.copy_gmem_to_smem(part, ring.at[slot], is_full.at[slot])

            for_each_block(tile, copy)

        def compute_tile(tile: Array, _: None) -> None:
            row, column = position(tile)
            rows = pl.ds(row * height + warpgroup * ROWS, ROWS)

            @partial(pl.run_scoped, sums=plgpu.ACC((ROWS, width), jnp.float32))
            def multiply_and_finish(sums: Ref) -> None:
                def multiply(_: Array, slot: Array) -> None:
                    plgpu.barrier_wait(is_full.at[slot])
                    own_rows = x_ring.at[slot, pl.ds(warpgroup * ROWS, ROWS)]
                    # [ROWS, BLOCK] @ [BLOCK, width] -> [ROWS, width]
                    plgpu.wgmma(sums, own_rows, weight_ring.at[slot].transpose((1, 0)))
                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(is_free.at[slot])

                for_each_block(tile, multiply)
                product = sums[...]
                for part in range(width // BLOCK):
                    first = column * width + part * BLOCK
                    result = product[:, part * BLOCK : (part + 1) * BLOCK]
                    biases = plgpu.load(bias, pl.ds(first, BLOCK), layout=ALONG, optimized=False)
                    result += jax.lax.broadcast_in_dim(biases, result.shape, (1,))
                    if with_gelu:
                        result = gelu(result)
                    plgpu.wait_smem_to_gmem(1, wait_read_only=True)  # the part before may still be on its way out
                    own = finished.at[warpgroup, part % 2]
                    own[...] = result.astype(x.dtype)
                    plgpu.commit_smem()
                    for index, output in enumerate(outputs):
                        columns = pl.ds(first - index * output.shape[1], BLOCK)
                        is_here = first // output.shape[1] == index
                        pl.when(is_here)(partial(plgpu.copy_smem_to_gmem, own, output.at[rows, columns]))

        @pl.when(warpgroup == WARPGROUPS)
        def copy_all() -> None:
            plgpu.set_max_registers(40, action="decrease")
            jax.lax.fori_loop(0, own_tiles, copy_tile, None)

        @pl.when(warpgroup < WARPGROUPS)
        def compute_all() -> None:
            plgpu.set_max_registers(232, action="increase")
            for slot in range(ahead):
                plgpu.barrier_arrive(is_free.at[slot])
            jax.lax.fori_loop(0, own_tiles, compute_tile, None)
            plgpu.wait_smem_to_gmem(0)

    smem = partial(plgpu.SMEM, dtype=x.dtype, transforms=_layout(BLOCK))
    pl.run_scoped(
        run,
        x_ring=smem((ahead, height, BLOCK)),
        weight_ring=smem((ahead, width, BLOCK)),
        finished=smem((WARPGROUPS, 2, ROWS, BLOCK)),
        is_full=plgpu.Barrier(num_arrivals=2, num_barriers=ahead),
        is_free=plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=ahead),
        collective_axes="warpgroup",
    )


def attention(query: Array, key: Array, value: Array, attention_mask: Array) -> Array:
    """Compute softmax(Q Kᵀ / √H) V among the tokens of each text. Softmax and sums are in float32.

    Args:
        query: [B, T, N, H] of half precision; T is a multiple of 8 from 64 to 512, H is 32 or 64.
        key: [B, T, N, H].
        value: [B, T, N, H].
        attention_mask: k > 0 for the tokens of the row's k-th text, 0 for padding, [B, T] of int32. Several texts of a
            row follow each other, each in one piece. If a row has a single text, padding may stand anywhere.

    Returns:
        [B, T, N, H]; finite numbers without meaning for padding.
    """
    rows, tokens, heads, size = query.shape
    # Several warpgroups keep a multiprocessor busy. SMEM has room for several short rows: one warpgroup for each was
    # fastest. For longer rows it was the number that makes four of all rows that SMEM has room for.
    warpgroups = 1 if tokens <= 256 else -(-4 * 3 * tokens * size * query.dtype.itemsize // SMEM_BYTES)
    count = KEYS if tokens >= KEYS else KEYS // 2  # keys of a block
    return plgpu.kernel(
        partial(_attention, count=count),
        out_type=jax.ShapeDtypeStruct(query.shape, query.dtype),
        grid=(heads, rows),
        grid_names=("head", "row"),
        num_threads=warpgroups,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )(query, key, value, attention_mask, _blocks(attention_mask, count))


def _blocks(attention_mask: Array, count: int) -> Array:
    """Find the keys that each tile of `ROWS` queries meets, in blocks of `count`: those of all texts that it touches.

    attention_mask is [B, T]. A tile of padding alone meets none.

    Returns:
        [B, tiles, 4] of int32: the first key, a multiple of 8; how many blocks from there; how many of them lead up to
        those that need no mask; how many need none, as they are of one text, and so are all queries but padding.
    """
    tokens = attention_mask.shape[1]
    numbers, position = attention_mask[:, None], jnp.arange(tokens, dtype=jnp.int32)  # [B, 1, T], [T]
    is_query = position // ROWS == jnp.arange(-(-tokens // ROWS))[:, None]  # [tiles, T]
    last = jnp.where(is_query, numbers, 0).max(axis=2, keepdims=True)  # [B, tiles, 1]: text
    first = jnp.where(is_query & (numbers > 0), numbers, jnp.iinfo(jnp.int32).max).min(axis=2, keepdims=True)
    is_met = (first <= numbers) & (numbers <= last)  # [B, tiles, T]
    ends = is_met & (numbers != jnp.pad(numbers[..., 1:], ((0, 0), (0, 0), (0, 1))))  # a text, or before a hole in it
    begin = jnp.where(is_met, position, tokens).min(axis=2)  # [B, tiles]
    stop = jnp.where(is_met, position + 1, 0).max(axis=2)
    unbroken = jnp.where((first == last)[..., 0], jnp.where(ends, position + 1, tokens).min(axis=2), 0)

    aligned = begin // 8 * 8
    leading = (begin > aligned).astype(jnp.int32)
    unmasked = jnp.maximum((unbroken - aligned) // count - leading, 0)
    return jnp.stack([aligned, jnp.maximum(-((aligned - stop) // count), 0), leading, unmasked], axis=2)


def _attention(query: Ref, key: Ref, value: Ref, attention_mask: Ref, blocks: Ref, output: Ref, *, count: int) -> None:
    """For one head of one row: all of it is in SMEM, and each warpgroup takes 64 queries at a time.

    query, key, value and output are [B, T, N, H], attention_mask [B, T], blocks [B, tiles, 4].
    """
    _, tokens, _, size = query.shape
    head, row = jax.lax.axis_index("head"), jax.lax.axis_index("row")
    warpgroup, warpgroups = jax.lax.axis_index("warpgroup"), jax.lax.axis_size("warpgroup")
    exponent = math.log2(math.e) / math.sqrt(size)  # powers of 2 are what the GPU has

    def numbers(start: Array, length: int, layout: Any) -> Array:  # of texts
        return plgpu.load(attention_mask, (row, pl.ds(start, length)), layout=layout, optimized=False)

    # [T, H] three times, [warpgroups, ROWS, H], and a barrier
    def run(queries: Ref, keys: Ref, values: Ref, finished: Ref, is_full: Ref) -> None:
        @pl.when(warpgroup == 0)
        def copy() -> None:
            for source, copied in ((query, queries), (key, keys), (value, values)):
                plgpu.copy_gmem_to_smem(source.at[row, :, head], copied, is_full)

        plgpu.barrier_wait(is_full)

        def attend(turn: Array, _: None) -> None:
            # If 64 does not divide the row, the last queries are taken from its end. Some are computed twice, and
            # written by the tile before, which knows their keys.
            tile = warpgroup + turn * warpgroups
            start = pl.multiple_of(jnp.minimum(tile * ROWS, tokens - ROWS), 8)
            first_key, all_blocks, leading, unmasked = (blocks[row, tile, index] for index in range(4))

            def add_keys(state: State, index: Array, own: Array | None = None) -> State:
                """Add a block of keys; given the numbers of the queries' own texts, each query sees its text's only."""
                context, highest, total = state
                first = first_key + index * count
                begin = pl.multiple_of(jnp.minimum(first, tokens - count), 8)
                block = pl.ds(begin, count)
                if own is not None:
                    # The last block may reach past the row. It is shifted back, and keys already counted are masked.
                    place = begin + plgpu.broadcasted_iota(jnp.int32, (count,), 0, layout=ALONG)
                    others = jnp.where(place >= first, numbers(begin, count, ALONG), -1)

                def multiply_keys(sums: Ref) -> Array:  # [ROWS, H] @ [H, keys]
                    plgpu.wgmma(sums, queries.at[pl.ds(start, ROWS)], keys.at[block].transpose((1, 0)))
                    return sums[...]

                scores = pl.run_scoped(multiply_keys, plgpu.ACC((ROWS, count), jnp.float32))
                if own is not None:
                    others = jax.lax.broadcast_in_dim(others, scores.shape, (1,))
                    scores = jnp.where(others == _across(own, count), scores, -1e30)
                before, highest = highest, jnp.maximum(highest, scores.max(axis=1) * exponent)
                weights = jnp.exp2(scores * exponent - _across(highest, count))
                shrink = jnp.exp2(before - highest)

                def multiply_values(sums: Ref) -> None:  # [ROWS, keys] @ [keys, H]
                    plgpu.wgmma(sums, weights.astype(value.dtype), values.at[block])

                context = pl.run_state(multiply_values)(plgpu.ACC.init(context * _across(shrink, size)))
                return context, highest, total * shrink + weights.sum(axis=1)

            # The highest score starts below all real ones, yet so far above masked ones that these always weigh 0.
            # Among masked ones alone, the rounding of 1e30 would decide, and could give infinity.
            highest, total = jnp.full((ROWS,), -1e20, jnp.float32), jnp.zeros((ROWS,), jnp.float32)
            state = jnp.zeros((ROWS, size), jnp.float32), highest, total
            state = jax.lax.fori_loop(0, unmasked, lambda index, state: add_keys(state, leading + index), state)
            own = numbers(start, ROWS, DOWN)

            def add_masked(index: Array, state: State) -> State:
                return add_keys(state, jnp.where(index < leading, index, index + unmasked), own)

            context, _, total = jax.lax.fori_loop(0, all_blocks - unmasked, add_masked, state)
            total = jnp.maximum(total, 1e-30)  # padding may have met no keys
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the queries before may still be on their way out
            done = finished.at[warpgroup]
            done[...] = (context * _across(1 / total, size)).astype(query.dtype)
            plgpu.commit_smem()
            for length in {ROWS, tokens % ROWS or ROWS}:
                part = done.at[pl.ds(ROWS - length, length)]
                place = output.at[row, pl.ds(pl.multiple_of(start + ROWS - length, 8), length), head]
                is_own = start + ROWS - length == tile * ROWS
                pl.when(is_own)(partial(plgpu.copy_smem_to_gmem, part, place))

        turns = (-(-tokens // ROWS) - warpgroup + warpgroups - 1) // warpgroups
        jax.lax.fori_loop(0, turns, attend, None)
        plgpu.wait_smem_to_gmem(0)

    smem = partial(plgpu.SMEM, dtype=query.dtype, transforms=_layout(size))
    pl.run_scoped(
        run,
        queries=smem((tokens, size)),
        keys=smem((tokens, size)),
        values=smem((tokens, size)),
        finished=smem((warpgroups, ROWS, size)),
        is_full=plgpu.Barrier(num_arrivals=3),
        collective_axes="warpgroup",
    )


def _layout(columns: int) -> tuple[plgpu.TilingTransform, plgpu.SwizzleTransform]:
    """How matrix instructions want an array of half precision laid out in SMEM."""
    return plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(2 * columns)


def _across(column: Array, count: int) -> Array:
    """Repeat a number of each row along it. [rows] -> [rows, count]."""
    return jax.lax.broadcast_in_dim(column, (*column.shape, count), (0,))
