"""The reference model: Hugging Face transformers in float32 and in genuine float64.

Weights are upcast from their stored type; attention is "eager"; there is no KV cache, so a row of logits depends on
the ids alone. `context` matters to dynamic NTK only, where transformers' frequencies follow the current length and
folollm fixes them to the context that was opened: `Reference(path, context)` uses those of a sequence of that length.
"""

import contextlib
import copy

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class _OnlyFloat64(TorchDispatchMode):
    """Refuses any operation that yields a narrower float."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64:
                raise TypeError(f"{func} computes in {tensor.dtype}")
        return out


@contextlib.contextmanager
def _float64_everywhere():
    """transformers casts norms, softmax and RoPE to float32 by name; inside, that name means float64."""
    saved = torch.float32, torch.float, torch.Tensor.float
    torch.float32, torch.float, torch.Tensor.float = torch.float64, torch.float64, torch.Tensor.double
    try:
        with _OnlyFloat64():
            yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = saved


def _fix_dynamic_length(rotary, config, length):
    if rotary.rope_type == "dynamic":
        rotary.inv_freq, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=length)
        rotary.rope_type = "default"  # no update when a sequence grows


class Reference:
    def __init__(self, path, context=0):
        self.model32 = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
        self.model32.eval()
        self.config = self.model32.config
        self.model64 = copy.deepcopy(self.model32).double()
        with _float64_everywhere():
            self.model64.model.rotary_emb = type(self.model64.model.rotary_emb)(self.config)
            self._fix(self.model64, context)
        self._fix(self.model32, context)

    def _fix(self, model, context):
        _fix_dynamic_length(model.model.rotary_emb, self.config, context or self.config.max_position_embeddings)

    @torch.no_grad()
    def logits32(self, ids):
        """(n_ids, vocab), float32"""
        return self.model32(torch.tensor([ids]), use_cache=False).logits[0]

    @torch.no_grad()
    def logits64(self, ids):
        """(n_ids, vocab), float64"""
        with _float64_everywhere():
            return self.model64(torch.tensor([ids]), use_cache=False).logits[0]

    def greedy(self, ids, n):
        """The n tokens that float32 argmax appends (end-of-text does not stop it), and the top-1/top-2 gap of each."""
        ids, tokens, gaps = list(ids), [], []
        for _ in range(n):
            top = self.logits32(ids)[-1].topk(2)
            tokens.append(int(top.indices[0]))
            gaps.append(float(top.values[0] - top.values[1]))
            ids.append(tokens[-1])
        return tokens, gaps
