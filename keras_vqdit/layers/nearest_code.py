"""The nearest code of every vector, in bounded memory."""

from keras import ops

TILE_ROWS = 128  # fewest vectors of a tile: below, reading the codes costs more than comparing them
TILE_CODES = 8192  # most codes of a tile
TILE_SIZE = TILE_ROWS * TILE_CODES  # 4 MiB of scores, about what a CPU core's cache holds


def nearest_codes(z, codebook, *, chunk_size=None):
    """Return the index of the code nearest to each vector, by Euclidean distance.

    It minimises ‖e‖²/2 − z·e, which orders the codes like ‖z − e‖². Only a tile of the N×K scores exists at a
    time: the whole table where it is small, else at most `chunk_size` vectors times 8,192 codes. For the nearest
    code by cosine similarity pass unit vectors. No gradient flows through it.

    Args:
        z: vectors `(..., D)` of any float dtype; compared in float32.
        codebook: codes `(K, D)`.
        chunk_size: most vectors compared at once, a positive integer. Default: what makes a tile of 4 MiB.

    Returns:
        int32 indices `(...)`. Ties go to the lowest index; a vector that holds NaN gets index 0.

    Raises:
        ValueError: if the shapes do not fit or `chunk_size` is not positive.

    Example:

    >>> import keras, numpy as np
    >>> keras.ops.convert_to_numpy(nearest_codes(np.array([[0.9], [0.2]]), np.array([[0.0], [1.0], [2.0]])))
    array([1, 0], dtype=int32)
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"`chunk_size` must be a positive integer or None. Received: chunk_size={chunk_size}")
    # Neither the loops below nor the indices have a gradient.
    z = ops.stop_gradient(ops.cast(z, "float32"))
    codebook = ops.stop_gradient(ops.cast(codebook, "float32"))
    if len(codebook.shape) != 2 or not z.shape or z.shape[-1] != codebook.shape[1]:
        raise ValueError(
            "`z` must be of shape (..., D) and `codebook` of shape (K, D). "
            f"Received: z.shape={tuple(z.shape)}, codebook.shape={tuple(codebook.shape)}"
        )
    num_codes, dim = codebook.shape
    shape = ops.shape(z)[:-1]
    z = ops.reshape(z, (-1, dim))  # (N, D)
    num_vectors = ops.shape(z)[0]
    known = isinstance(num_vectors, int)  # else a tensor: the batch size is unknown
    half_norms = 0.5 * ops.sum(codebook**2, axis=-1)  # (K,)
    rows = chunk_size or TILE_SIZE // min(num_codes, TILE_CODES)
    if known and num_vectors == 0:
        return ops.zeros(shape, "int32")
    if known and num_vectors <= rows:
        return ops.reshape(_search(z, codebook, half_norms), shape)

    # The last chunk overlaps the one before it, so that all are of one size.
    rows = rows if known else ops.clip(num_vectors, 1, rows)

    def search_chunk(i, indices):
        start = ops.minimum(i * rows, num_vectors - rows)
        found = _search(ops.slice(z, (start, 0), (rows, dim)), codebook, half_norms)
        if known:
            return i + 1, ops.slice_update(indices, (start,), found)
        place = ops.expand_dims(start + ops.arange(rows, dtype="int32"), axis=-1)
        return i + 1, ops.scatter_update(indices, place, found)  # which can be exported to ONNX, where that can not

    _, indices = ops.while_loop(
        lambda i, indices: i * rows < num_vectors, search_chunk, (0, ops.zeros((num_vectors,), "int32"))
    )
    return ops.reshape(indices, shape)


def _search(z, codebook, half_norms):
    """Indices (R,) for one chunk of vectors (R, D)."""
    num_codes, dim = codebook.shape
    if num_codes <= TILE_CODES:
        return _search_tile(z, codebook, half_norms)[1]

    def search_tile(i, best, indices):
        start = ops.minimum(i * TILE_CODES, num_codes - TILE_CODES)  # the last tile overlaps as well
        score, found = _search_tile(
            z,
            ops.slice(codebook, (start, 0), (TILE_CODES, dim)),
            ops.slice(half_norms, (start,), (TILE_CODES,)),
        )
        closer = score < best  # strictly: on a tie the earlier tile holds the lower index
        return i + 1, ops.where(closer, score, best), ops.where(closer, found + start, indices)

    nowhere = ops.zeros_like(z[:, 0])
    loop = (0, nowhere + float("inf"), ops.cast(nowhere, "int32"))
    return ops.while_loop(lambda i, best, indices: i * TILE_CODES < num_codes, search_tile, loop)[2]


def _search_tile(z, codebook, half_norms):
    """Lowest score (R,) and its index (R,) among the codes of one tile."""
    scores = half_norms - z @ ops.transpose(codebook)  # (R, C)
    lowest = ops.min(scores, axis=-1, keepdims=True)
    # Not argmin: Keras's breaks the tie of -0.0 and 0.0, and two plain reductions are as fast under XLA.
    num_codes = codebook.shape[0]
    indices = ops.where(scores > lowest, num_codes, ops.arange(num_codes, dtype="int32"))
    return lowest[:, 0], ops.min(indices, axis=-1)
