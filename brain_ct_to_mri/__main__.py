"""`python -m brain_ct_to_mri` is the command `brain-ct-to-mri`."""

from .cli import main

if __name__ == "__main__":
    main()
