"""Save, load and export encoders: safetensors, ONNX, torch.export, torch.hub, model card, backbone weights."""
