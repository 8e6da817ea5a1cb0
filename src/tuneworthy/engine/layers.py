"""Quicker ways through transformers' layers: same parameters, same results.

Each replaces the `forward` of modules that it recognises by their parts and leaves all others
alone; `learner` and `runner` compare the whole model with its own forward before they rely on
them. They save what eager PyTorch spends on small steps: sixty norms of six operations each, rotary
embeddings that fill and copy, low-rank products in another number format.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from tuneworthy.engine import adapted, memory, products
from tuneworthy.engine.attention import Attending, LayerAttention, attend
from tuneworthy.engine.beside import Beside
from tuneworthy.engine.functions import LowRank, Norm, SiLUTimes
from tuneworthy.engine.hardware import liger
from tuneworthy.engine.kernels import Kernels
from tuneworthy.engine.learned import OwnLayer
from tuneworthy.engine.packed import OwnPlans
from tuneworthy.engine.whole import Plain, Whole

COPIES = 3
"""Of all weights must fit into memory for a reordered one to be made beside the model's own."""


def _norm_parts(module: Any) -> tuple[float, float] | None:
    """Epsilon of an RMSNorm layer, and what it adds to its weight before multiplying: 0 or 1."""
    name, weight = type(module).__name__, getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not name.endswith("RMSNorm") or weight is None or epsilon is None:
        return None
    probe = torch.linspace(-2, 2, weight.numel(), device=weight.device, dtype=torch.float32)
    with torch.no_grad():
        wanted = module(probe[None].to(weight.dtype)).float()
        unit = probe * (probe.square().mean() + epsilon).rsqrt()
        for plus in (0.0, 1.0):
            if torch.allclose(unit * (weight.float() + plus), wanted[0], 0.02, 0.02):
                return epsilon, plus
    return None


def _gain(module: Any, plus: float) -> torch.Tensor:
    gain_C: torch.Tensor = (module.weight.detach().float() + plus).contiguous()
    return gain_C


def _norm(
    module: Any, beside: Beside | None, kernels: Kernels | None
) -> Callable[..., torch.Tensor] | None:
    """For RMSNorm layers, of which some multiply by the weight and some by 1 + weight."""
    parts = _norm_parts(module)
    if parts is None:
        return None
    epsilon, plus = parts
    if liger() and beside is None:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        casting = "gemma" if plus else "llama"
        return lambda self, x: LigerRMSNormFunction.apply(
            x, self.weight, epsilon, plus, casting, False
        )

    if beside is not None and kernels:
        quick, gain_C = kernels, _gain(module, plus)
        return lambda self, x: quick.norm(x, gain_C, epsilon)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        gain = self.weight if plus == 0.0 else (self.weight.float() + plus).to(x.dtype)
        output: torch.Tensor = Norm.apply(x, gain, epsilon, kernels)
        return output

    return forward


def _low_rank(
    kernels: Kernels | None, *modules: Any
) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]] | None:
    """The outputs of layers of one input, if each is plain LoRA over a frozen linear layer."""
    if not all(adapted.plain_lora(module) for module in modules):
        return None
    own = adapted.low_rank(kernels, modules)

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if own and own.suits(x):
            return own(x)
        scales, parts = [], []
        for module in modules:
            [name], base = module.lora_A, module.base_layer
            scales.append(module.scaling[name])
            parts += [base.weight, base.bias, module.lora_A[name].weight]
            parts.append(module.lora_B[name].weight)
        outputs: tuple[torch.Tensor, ...] = LowRank.apply(x, tuple(scales), *parts)
        return outputs

    return forward


def _adapted_linear(
    module: Any, beside: Beside | None, kernels: Kernels | None
) -> Callable[..., torch.Tensor] | None:
    low_rank = _low_rank(kernels, module) if beside is None else None
    return None if low_rank is None else lambda self, x: low_rank(x)[0]


def _answering_linear(
    module: Any, beside: Beside | None, kernels: Kernels | None
) -> Callable[..., torch.Tensor] | None:
    if beside is None or type(module) is not nn.Linear:
        return None
    quick = products.product(beside, kernels, module)

    def forward(self: Any, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        if quick is None or not quick.suits(x):
            output = nn.functional.linear(x, self.weight, self.bias)
            output = output if plus is None else output.add_(plus)
        else:
            output = quick(x, plus)
        return beside.added(self, x, output)

    return forward


def _together(
    beside: Beside | None, kernels: Kernels | None, *modules: Any
) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    """Layers of one input, in as few products as they allow."""

    def each(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(module(x) for module in modules)

    if beside is None:
        return _low_rank(kernels, *modules) or each
    quick = products.product(beside, kernels, *modules)
    if quick is None:
        return each

    def joined(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not quick.suits(x):
            return each(x)
        outputs = torch.split(quick(x), quick.widths, -1)
        return tuple(beside.added(module, x, out) for module, out in zip(modules, outputs))

    return joined


def _is_silu(activation: Any) -> bool:
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"


def _gated(
    module: Any, beside: Beside | None, kernels: Kernels | None
) -> Callable[..., torch.Tensor] | None:
    """For a gated feed-forward block: down(act(gate(x)) × up(x))."""
    parts = {"gate_proj", "up_proj", "down_proj", "act_fn"}
    if {name for name, _ in module.named_children()} != parts:
        return None
    silu = _is_silu(module.act_fn)
    quick = None
    if beside is not None and silu:
        quick = products.gate(beside, kernels, module.gate_proj, module.up_proj)
    both = _together(None if quick else beside, kernels, module.gate_proj, module.up_proj)

    def silu_times(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if liger():
            from liger_kernel.ops.swiglu import LigerSiLUMulFunction

            return LigerSiLUMulFunction.apply(gate, up)
        output: torch.Tensor = SiLUTimes.apply(gate, up, kernels)
        return output

    def gated(x: torch.Tensor, beside: Beside, quick: products.Gate) -> torch.Tensor:
        """At once; with something between where an adapter goes beside."""
        if not beside.touches(module.gate_proj, module.up_proj):
            return quick(x)
        gate, up = quick.apart(x)
        gate = beside.added(module.gate_proj, x, gate)
        return nn.functional.silu(gate) * beside.added(module.up_proj, x, up)

    def forward(self: Any, x: torch.Tensor, **plus: torch.Tensor) -> torch.Tensor:
        if beside is not None and quick and quick.suits(x):
            inner = gated(x, beside, quick)
        else:
            gate, up = both(x)
            inner = silu_times(gate, up) if silu and beside is None else self.act_fn(gate) * up
        output: torch.Tensor = self.down_proj(inner, **plus)
        return output

    return forward


def _how(module: Any) -> LayerAttention:
    """Of an attention block."""
    config = getattr(module, "config", None)
    return LayerAttention(
        module.layer_idx,
        getattr(module, "scaling", None) or module.head_dim**-0.5,
        # A block that is told it by its configuration alone has it in all layers, as Mistral's.
        getattr(module if hasattr(module, "sliding_window") else config, "sliding_window", None),
        getattr(module, "attn_logit_softcapping", None),
    )


def _attention(
    module: Any, beside: Beside | None, kernels: Kernels | None
) -> Callable[..., Any] | None:
    """For self-attention with q, k, v, o projections and rotary embedding over the whole head."""
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "layer_idx")
    if not all(hasattr(module, part) for part in parts) or hasattr(module, "sinks"):
        return None

    norms = hasattr(module, "q_norm")
    three = _together(beside, kernels, module.q_proj, module.k_proj, module.v_proj)
    how = _how(module)

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        *,
        pack: Attending,
        plus: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        tokens = hidden_states.shape[1]
        query, key, value = (x.view(tokens, -1, self.head_dim) for x in three(hidden_states))
        if norms:
            query, key = self.q_norm(query), self.k_norm(key)
        cos, sin = (x[0] for x in position_embeddings)
        if cos.shape[-1] != self.head_dim:
            raise NotImplementedError("rotary embedding over a part of the head")
        output_T_H_D = attend(query, key, value, (cos, sin), how, pack)
        more = {} if plus is None else {"plus": plus}
        return self.o_proj(output_T_H_D.reshape(1, tokens, -1), **more), None

    return forward


def _layer(
    module: Any, beside: Beside | None, kernels: Kernels | None
) -> Callable[..., torch.Tensor] | None:
    """For a decoder layer that norms, attends, norms and feeds forward, adding each result.

    After the attention of the last one nobody looks at any token but those that predict labels.
    """
    parts = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
    if {name for name, _ in module.named_children()} != parts:
        return None
    config = getattr(module.self_attn, "config", None)
    last = getattr(config, "num_hidden_layers", 0) - 1
    is_last = getattr(module.self_attn, "layer_idx", None) == last
    # What a block's last product is added to is added in the same call.
    adds = beside is not None and all(
        recognise(block, beside, kernels) and type(getattr(block, name, None)) is nn.Linear
        for recognise, block, name in (
            (_attention, module.self_attn, "o_proj"),
            (_gated, module.mlp, "down_proj"),
        )
    )
    own = None if is_last or beside is not None else _learned(module, kernels)
    if not (is_last or adds or own):
        return None

    def once(
        self: Any, hidden_states: torch.Tensor, *args: Any, pack: Attending, **kwargs: Any
    ) -> torch.Tensor:
        rotary = kwargs.get("position_embeddings")
        if own and rotary and isinstance(pack, OwnPlans) and own.suits(hidden_states, rotary):
            return own(hidden_states, rotary, pack)
        x, normed = hidden_states, self.input_layernorm(hidden_states)
        if adds:
            x, _ = self.self_attn(normed, pack=pack, plus=x, **kwargs)
        else:
            x = x + self.self_attn(normed, pack=pack, **kwargs)[0]
        if is_last:
            x = x.index_select(1, pack.label_positions_L)
            pack.labels_only = True
        normed = self.post_attention_layernorm(x)
        output: torch.Tensor = self.mlp(normed, plus=x) if adds else x + self.mlp(normed)
        return output

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        # transformers has a class's own forward compute activations twice, not one that replaces it.
        if self.training and getattr(self, "gradient_checkpointing", False):
            output: torch.Tensor = self._gradient_checkpointing_func(
                partial(once, self, **kwargs), x, *args
            )
            return output
        return once(self, x, *args, **kwargs)

    return forward


def _learned(module: Any, kernels: Kernels | None) -> OwnLayer | None:
    """A decoder layer, if all that it learns is plain LoRA beside each linear layer."""
    attention, block = module.self_attn, module.mlp
    if (
        kernels is None
        or _attention(attention, None, kernels) is None
        or hasattr(attention, "q_norm")
    ):
        return None
    if _gated(block, None, kernels) is None or not _is_silu(block.act_fn):
        return None
    linear = [getattr(attention, f"{name}_proj") for name in "qkvo"]
    linear += [block.gate_proj, block.up_proj, block.down_proj]
    if not all(adapted.plain_lora(part) and adapted.multiplied(kernels, part) for part in linear):
        return None
    norms = (module.input_layernorm, module.post_attention_layernorm)
    parts = [_norm_parts(norm) for norm in norms]
    if None in parts or any(norm.weight.requires_grad for norm in norms):
        return None
    epsilons, pluses = zip(*(part for part in parts if part))
    gains = [_gain(norm, plus) for norm, plus in zip(norms, pluses)]
    return OwnLayer(
        kernels, (gains[0], gains[1]), epsilons, _how(attention), attention.head_dim, linear
    )


def _plain(module: Any, beside: Beside, kernels: Kernels) -> Plain | None:
    """What a decoder layer is made of, if it is of the kind that `whole` knows."""
    if _layer(module, beside, kernels) is None or hasattr(module.self_attn, "q_norm"):
        return None
    attention, block = module.self_attn, module.mlp
    first = _norm_parts(module.input_layernorm)
    second = _norm_parts(module.post_attention_layernorm)
    three = products.product(beside, kernels, attention.q_proj, attention.k_proj, attention.v_proj)
    out = products.product(beside, kernels, attention.o_proj)
    gate = products.gate(beside, kernels, block.gate_proj, block.up_proj)
    down = products.product(beside, kernels, block.down_proj)
    if first is None or second is None or not _is_silu(block.act_fn):
        return None
    if not isinstance(gate, products.OwnGate) or not isinstance(three, products.OwnProduct):
        return None
    if not isinstance(out, products.OwnProduct) or not isinstance(down, products.OwnProduct):
        return None
    gains = (
        _gain(module.input_layernorm, first[1]),
        _gain(module.post_attention_layernorm, second[1]),
    )
    return Plain(gains, (first[0], second[0]), _how(attention), three, out, gate, down)


def _at_once(model: Any, beside: Beside, kernels: Kernels) -> int:
    """Have layers, from the first on, go through the model in one call; how many do.

    The last one is left out: it goes on with fewer tokens.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    layers = list(getattr(decoder, "layers", []))[:-1]
    parts = [_plain(module, beside, kernels) for module in layers]
    plain = list(takewhile(lambda part: part is not None, parts))
    if not plain:
        return 0
    whole = Whole(kernels, beside, [part for part in plain if part])

    def wrapped(own: Callable[..., torch.Tensor], first: bool) -> Callable[..., torch.Tensor]:
        def forward(
            self: Any, x: torch.Tensor, *args: Any, pack: Any, position_embeddings: Any, **more: Any
        ) -> torch.Tensor:
            if not whole.suits(x, position_embeddings, pack):
                more |= {"pack": pack, "position_embeddings": position_embeddings}
                return own(x, *args, **more)
            return whole(x, position_embeddings, pack) if first else x

        return forward

    for i, module in enumerate(layers[: len(plain)]):
        module.forward = types.MethodType(wrapped(module.forward, not i), module)
    return len(plain)


@contextmanager
def replaced(
    model: Any, beside: Beside | None = None, kernels: Kernels | None = None
) -> Iterator[dict[str, int]]:
    """The model with every recognised layer on its quicker way; how many of each kind.

    With `beside` for answering: no gradients are wanted, and weights stay as they are meanwhile.
    """
    kinds = {
        "norms": _norm,
        "adapters": _adapted_linear,
        "attention blocks": _attention,
        "feed-forward blocks": _gated,
        "layers": _layer,
    }
    if beside is not None:
        kinds["linear layers"] = _answering_linear
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        beside.roomy = memory.available(torch.device("cpu")) > COPIES * weights
    counts = dict.fromkeys(kinds, 0)
    changed = []
    try:
        for module in list(model.modules()):
            for kind, recognise in kinds.items():
                forward = recognise(module, beside, kernels)
                if forward is not None:
                    module.forward = types.MethodType(forward, module)
                    changed.append(module)
                    counts[kind] += 1
        if beside is not None and kernels:
            counts["layers at once"] = _at_once(model, beside, kernels)
        yield counts
    finally:
        for module in changed:
            del module.forward
