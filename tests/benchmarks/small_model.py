"""A configuration whose model is made in an instant."""
from artgpt4 import Config, LlamaConfig, QFormerConfig, ViTConfig

SMALL = Config(56, 1e-5, 64, ViTConfig(176, 1, 2, 256), QFormerConfig(128, 2, 2, 128, 6),
               LlamaConfig(256, 704, 6, 4, 4, vocab_size=1500))
