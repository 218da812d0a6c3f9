"""The compact per-head KV cache: nouns, policies, kernels, frames, pool and tiers.

Knows tensors and bytes; no gRPC, no transformers, no metrics, no environment.
Axis letters, used everywhere: `L` layers, `H` KV heads, `G` query heads per KV head,
`T` tokens, `D` head size, `R` rows kept.
"""
