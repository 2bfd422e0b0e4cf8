"""Brain CT to MRI translation with Brownian-bridge diffusion; the package that the configs name."""
