"""Read untrusted weight files: safetensors, `torch.save`, TorchScript; state dicts alone or inside a checkpoint.

No code in a file is ever run: tensors and plain values are read, and all other objects become inert stubs.
"""
