"""What the functions of kernels.cpp are handed, and how many numbers lie where."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
LANES = 16
"""Numbers that are computed at a time: heads' widths must be multiples of it."""
PANEL = 2 * LANES
"""Lines that lie together, see tiles.h."""
DEEP = {torch.float32: 1, torch.bfloat16: 2}
"""Numbers of a line that lie side by side there."""


class Rows(ctypes.Structure):
    """What a pass of the model knows of its rows, the same for every layer (in attention.h)."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "kv_heads", "width", "prefix")),
        *((name, ctypes.c_void_p) for name in ("keys_B", "values_B", "strides_B", "rooms_B")),
        *((name, ctypes.c_void_p) for name in ("lengths_B", "starts_B", "depths_T", "sees_BQQ")),
    )


class Layer(ctypes.Structure):
    """What a decoder layer of the plain kind is made of (in whole.h)."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("norm", "second_norm")),
        *((name, ctypes.c_void_p) for name in ("three", "out", "gate", "down")),
        *((f"{name}_bias", ctypes.c_void_p) for name in ("three", "out", "gate", "down")),
        *((name, ctypes.c_int64) for name in ("window", "inner")),
        *((name, ctypes.c_float) for name in ("epsilon", "second_epsilon", "scale", "softcap")),
    )


class LowRank(ctypes.Structure):
    """What goes beside one product of a layer (in whole.h)."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("downs", "ups")),
        ("ranks", ctypes.c_int64),
    )


LEARNED_PARTS = 7
"""Linear layers of a decoder layer: queries, keys, values, their output, gate, up, down."""


class Adapted(ctypes.Structure):
    """A frozen linear layer with a low-rank part beside it (in adapted.h)."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("lines", "columns", "bias", "down_RK", "up_NR")),
        *((name, ctypes.c_int64) for name in ("width", "rank")),
        ("scale", ctypes.c_float),
    )


class Learned(ctypes.Structure):
    """A decoder layer of the plain kind that is learned with (in learned.h)."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("norm", "second_norm")),
        *(("parts", Adapted * LEARNED_PARTS), ("width", ctypes.c_int64)),
        *((name, ctypes.c_float) for name in ("epsilon", "second_epsilon", "scale")),
    )


class Pack(ctypes.Structure):
    """A pack that is learned from, as all layers of one kind see it (in packs.h)."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "prefix", "heads", "kv_heads", "width")),
        *(("window", ctypes.c_int64), ("starts_R", ctypes.c_void_p), ("softcap", ctypes.c_float)),
    )


@dataclass(frozen=True, slots=True)
class Weights:
    """Of one linear layer (N, K), or of two that go together, as products.h reads them."""

    panels: torch.Tensor
    """Lines of weights, VECTORS × LANES a panel; or of two layers, LANES of each."""
    biases: torch.Tensor | None
    """In the same order, in 32 bits."""
    columns: int
    """N."""
    depth: int
    """K."""
    pair: bool


KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "x": ctypes.c_float, "i": ctypes.c_int}
SIGNATURES = {
    "norm": "pnpppnnxi",
    "norm_back": "pppppnni",
    "gate": "pppni",
    "gate_back": "pppppni",
    "turn": "pnppnxpnnni",
    "lose": "ppnnippi",
    "likeliest": "pnnnppi",
    "put": "pnpnpnpnppnxpi",
    "read": "pnnxppppi",
    "attend": "pnnxppppi",
    "lay": "pnnnipi",
    "product": "pnnnpnpippni",
    "layers": "pnppnppnppppni",
    "adapt": "pnpnnppi",
    "adapt_back": "pnpppnnpppi",
    "learn": "ppppppi",
    "learn_back": "ppppppppppi",
    "layer_there": "ppnppppnpppi",
    "layer_back": "ppnppppnpppppi",
    "multiplies": "",
}
"""What each function of kernels.cpp takes: addresses, whole numbers, real ones, threads."""
