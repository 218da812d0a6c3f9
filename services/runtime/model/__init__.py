"""The model: loading, the attention hook, the tokenizer, kernels for small batches."""
