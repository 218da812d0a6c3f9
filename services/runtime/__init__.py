"""Parts that both processes share: model, tokenizer, server shell, metrics, configuration."""
