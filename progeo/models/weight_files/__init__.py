"""Files of weights that anybody wrote: safetensors, `torch.save`, TorchScript; alone or inside a checkpoint.

Nothing in a file is ever run: of what is no tensor, plain values are read and all else becomes an inert stub.
"""
