"""Operations and bytes of every op by formula, and the memory that the references need.

FLOPs are those of the formula, each once: a fused kernel that computes something twice gets no credit for it, and
softmaxes, masks and look-ups, which no matrix unit does, are left out where they are a few per cent. Bytes are the
fewest that must cross device memory: each input read once, each output written once. An achieved rate over a ceiling
is therefore a lower bound of how busy the device was.
"""

from __future__ import annotations

from dataclasses import dataclass

CHANNELS = 3
"""Colours of a guide image."""


@dataclass(frozen=True)
class Attention:
    """The shape of a `residual_attention`."""

    batch: int
    heads: int
    grid: tuple[int, int]
    width: int = 64
    layers: int = 4
    """Cross layers, beside one score with prior and feedback."""
    element: int = 2
    """Bytes a number."""

    @property
    def patches(self) -> int:
        """n = h·w."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """L = 1 + n."""
        return 1 + self.patches

    @property
    def tensor_bytes(self) -> int:
        """One (B, A, L, d) tensor."""
        return self.batch * self.heads * self.tokens * self.width * self.element

    @property
    def map_bytes(self) -> int:
        """One (B, A, L, L) map."""
        return self.batch * self.heads * self.tokens**2 * self.element

    @property
    def state_bytes(self) -> int:
        """Semantic feedback's state: a bit a pair, an int64 label and a float32 row sum a patch."""
        return self.batch * self.patches * (-(-self.patches // 8) + 8 + 4)

    @property
    def flops(self) -> int:
        """Two products a branch, 2·L²·d each and head: 4·B·A·L²·d·(layers + 1)."""
        pairs = self.batch * self.heads * self.tokens**2
        return 4 * pairs * self.width * (self.layers + 1)

    @property
    def bytes(self) -> int:
        """k, v, each layer's q and k read; the sum and A_c·v written; the state read."""
        outputs = 2 if self.layers else 1
        return (2 + 2 * self.layers + outputs) * self.tensor_bytes + self.state_bytes

    @property
    def reference_bytes(self) -> int:
        """The reference's largest memory beside its arguments.

        Its peak is in the mean over layers: their maps, the same maps stacked, and the mean; the base's output is
        there by then. Without layers it is at most three maps of the base: a score, its softmax, and their sum.
        """
        maps = 2 * self.layers + 1 if self.layers else 3
        return maps * self.map_bytes + self.tensor_bytes

    @property
    def dense_bytes(self) -> int:
        """Ŝ as the reference takes it: (B, n, n) float32."""
        return 4 * self.batch * self.patches**2


@dataclass(frozen=True)
class Feedback:
    """The shape of a `semantic_feedback` with the released rule."""

    batch: int
    grid: tuple[int, int]
    smoothing_std: float = 5.0

    @property
    def patches(self) -> int:
        """n = h·w."""
        return self.grid[0] * self.grid[1]

    @property
    def taps(self) -> int:
        """K of the Gaussian: min(n, int(6σ + 1)), odd."""
        taps = min(self.patches, int(6 * self.smoothing_std + 1))
        return taps + 1 - taps % 2

    @property
    def flops(self) -> int:
        """The smoothing, a direct convolution of every row, without which no maximum is known: 2·K·n² an image."""
        return 2 * self.taps * self.batch * self.patches**2

    @property
    def bytes(self) -> int:
        """Labels read (int64); a bit a pair, a float32 row sum a patch and a maximum an image written."""
        return self.batch * (self.patches * (8 + -(-self.patches // 8) + 4) + 4)

    @property
    def reference_bytes(self) -> int:
        """The path test of one image: (M + 1)·n² samples of two coordinates.

        At the widest moment their exact place is there in float32 (8 bytes), rounded (8) and as int64 (16).
        """
        return 32 * max(self.grid) * self.patches**2 + 16 * self.batch * self.patches**2


@dataclass(frozen=True)
class Pamr:
    """The shape of a `pamr`."""

    batch: int
    queries: int
    size: tuple[int, int]
    iterations: int = 10
    rings: int = 2
    element: int = 4

    @property
    def plane_elements(self) -> int:
        """Of all planes together."""
        return self.batch * self.queries * self.size[0] * self.size[1]

    @property
    def flops(self) -> int:
        """A multiply-add a neighbour, plane element and iteration: 2·8·rings of them; the weights are shared."""
        return self.iterations * self.plane_elements * 16 * self.rings

    @property
    def bytes(self) -> int:
        """iterations × (read + write) of the planes.

        A plane's result depends on pixels iterations·dilation away, so planes larger than the cache cross memory once
        an iteration each way.
        """
        return 2 * self.iterations * self.plane_elements * self.element

    @property
    def reference_bytes(self) -> int:
        """Every neighbour of every plane twice, while the rings are joined, and padded copies of the planes."""
        return 3 * 8 * self.rings * self.plane_elements * self.element


@dataclass(frozen=True)
class PatchLabels:
    """The shape of a `patch_labels` with PAMR: PAMR on the upsampled planes is nearly all of it."""

    batch: int
    queries: int
    size: tuple[int, int]
    patch: int = 16
    element: int = 4

    @property
    def refinement(self) -> Pamr:
        """The PAMR inside, on float32 planes."""
        return Pamr(self.batch, self.queries, self.size)

    @property
    def flops(self) -> int:
        """PAMR's, a bilinear sample (6) and a running softmax (4) a query and pixel."""
        return self.refinement.flops + 10 * self.refinement.plane_elements

    @property
    def bytes(self) -> int:
        """Logits and guide read, int64 labels written; planes can be upsampled, refined and folded within the cache."""
        height, width = self.size
        cells = (height // self.patch) * (width // self.patch)
        guide = self.batch * CHANNELS * height * width * self.element
        ends = self.batch * cells * (self.queries * self.element + 8)
        return ends + guide

    @property
    def reference_bytes(self) -> int:
        """PAMR's neighbours, beside the planes and their probabilities."""
        return self.refinement.reference_bytes + 3 * 4 * self.refinement.plane_elements


@dataclass(frozen=True)
class Upsample:
    """The shape of an `upsample_argmax` without PAMR."""

    batch: int
    queries: int
    grid: tuple[int, int]
    size: tuple[int, int]
    element: int = 4

    @property
    def pixels(self) -> int:
        """Of all images together."""
        return self.batch * self.size[0] * self.size[1]

    @property
    def flops(self) -> int:
        """A query and pixel: a bilinear sample (6), scale, maximum, exponential and sum (4)."""
        return 10 * self.queries * self.pixels

    @property
    def bytes(self) -> int:
        """Logits read, an int64 label and a float32 probability a pixel written."""
        cells = self.batch * self.queries * self.grid[0] * self.grid[1]
        return cells * self.element + 12 * self.pixels

    @property
    def reference_bytes(self) -> int:
        """Planes at full size: the logits, scaled, their softmax, and the classes merged and stacked."""
        return 5 * self.element * self.queries * self.pixels


@dataclass(frozen=True)
class Proxy:
    """The shape of a `proxy_attention`."""

    batch: int
    heads: int
    channels: int
    fine: tuple[int, int]
    """(H_v, W_v), the grid of the features."""
    grid: tuple[int, int]
    """(h, w), the grid of the values."""
    width: int = 64
    element: int = 2

    @property
    def positions(self) -> int:
        """n = H_v·W_v."""
        return self.fine[0] * self.fine[1]

    @property
    def flops(self) -> int:
        """X Xᵀ once for all heads, 2·n²·C, and the map times each head's values, 2·n²·d, an image."""
        return 2 * self.batch * self.positions**2 * (self.channels + self.heads * self.width)

    @property
    def bytes(self) -> int:
        """Features and values read, (B, A, n, d) written."""
        cells = self.grid[0] * self.grid[1]
        numbers = self.positions * self.channels
        numbers += self.heads * self.width * (cells + self.positions)
        return self.batch * numbers * self.element

    @property
    def reference_bytes(self) -> int:
        """At most six (B, n, n) maps at a time, in float32 at the widest."""
        return 6 * 4 * self.batch * self.positions**2


@dataclass(frozen=True)
class Aggregation:
    """The shape of a `similarity_aggregation`."""

    batch: int
    patches: int
    channels: int = 768
    width: int = 768
    element: int = 2

    @property
    def flops(self) -> int:
        """U Uᵀ, 2·n²·C, and the weights times the values, 2·n²·D, an image."""
        return 2 * self.batch * self.patches**2 * (self.channels + self.width)

    @property
    def bytes(self) -> int:
        """Features and values read, (B, n, D) written."""
        return self.batch * self.patches * (self.channels + 2 * self.width) * self.element

    @property
    def reference_bytes(self) -> int:
        """At most four (B, n, n) maps at a time and four copies of the rows, in float32."""
        rows = self.batch * self.patches * (self.channels + self.width)
        return 4 * 4 * (self.batch * self.patches**2 + rows)


@dataclass(frozen=True)
class Propagation:
    """The shape of a `laplacian_propagation`."""

    batch: int
    queries: int
    size: tuple[int, int]
    grid: int = 80
    iterations: int = 25
    width: int = 512

    @property
    def cells(self) -> int:
        """Of the grid that it is solved on, of all queries and images together."""
        rows, columns = (side // max(1, round(side / self.grid)) for side in self.size)
        return self.batch * self.queries * rows * columns

    @property
    def flops(self) -> int:
        """A step: the stencil (13) and the updates and sums (10) a cell; pooling (1) and resizing (6) a pixel."""
        pixels = self.batch * self.queries * self.size[0] * self.size[1]
        return 23 * self.iterations * self.cells + 7 * pixels

    @property
    def bytes(self) -> int:
        """Logits and picture read, logits written; the fields of the grid can stay within the cache."""
        pixels = self.batch * self.size[0] * self.size[1]
        return 4 * pixels * (2 * self.queries + CHANNELS)

    @property
    def reference_bytes(self) -> int:
        """Logits at full size, three times, and the grid's fields."""
        pixels = self.batch * self.queries * self.size[0] * self.size[1]
        return 4 * (3 * pixels + 16 * self.cells)


@dataclass(frozen=True)
class Tower:
    """A vision transformer on some windows, every block once and the final one's attention as `Attention` counts it."""

    windows: int
    tokens: int
    layers: int = 12
    width: int = 768
    patch: int = 16
    output: int = 512
    branches: int = 6
    """Attentions of the final block: one and four cross layers in pass 1, one in pass 2."""

    @property
    def flops(self) -> int:
        """A block's products 24·L·D² and attention 4·L²·D; patches 2·L·3·P²·D; the final block and head twice.

        The final block has no MLP: 2·L·D² times 3 (q, k, v) once and 1 (out) a pass.
        """
        linear = 24 * (self.layers - 1) * self.width**2 + 2 * 5 * self.width**2
        embedding = 2 * CHANNELS * self.patch**2 * self.width + 2 * 2 * self.width * self.output
        attention = 4 * self.tokens * self.width * (self.layers - 1 + self.branches)
        return self.windows * self.tokens * (linear + embedding + attention)
