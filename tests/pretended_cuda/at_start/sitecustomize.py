"""Gives the process that finds this in its path the pretended device, from its start to its end."""

from __future__ import annotations

# parts of transformers are loaded late, and look at torch.cuda as they are
from transformers import LlamaForCausalLM  # noqa: F401

from tests.pretended_cuda import pretended_cuda

_lasting = pretended_cuda()
_lasting.__enter__()
