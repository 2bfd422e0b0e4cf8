"""Speed, memory and exactness of the main job, measured against plain PyTorch and the machine's limit."""
