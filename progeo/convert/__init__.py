"""Import weights of other programs: detect the format of a state dict and convert it to an encoder."""
