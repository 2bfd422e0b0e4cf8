"""Whether what a CT shows is in the synthetic image made from it."""
