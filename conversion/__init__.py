"""The parts of convert_weights.py.

formats          one table of names for each public format
tensor_files     the tensors of one file: safetensors or torch.save
language_models  LLaMA in Meta's format, and Vicuna as a delta to LLaMA
checkpoints      a whole checkpoint: its kind, tensors, config.json, tokenizer.model
sizes            the Config that follows from the checkpoints
assembly         from their names to ours: the tensors of the weights folder
writing          safetensors files, shards, a folder that appears when it is complete
discovery        what lies in checkpoints/, and what is missing
"""
