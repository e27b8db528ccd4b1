"""``make gpu``: everything that is done on a GPU, within minutes, on a machine without network."""
