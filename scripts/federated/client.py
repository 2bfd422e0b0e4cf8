"""The script that NVFlare starts on each site; NVFlare runs it as a file, by its path."""

import sys
from pkgutil import resolve_name

if __name__ == "__main__":
    resolve_name("scripts.federated.site:take_part")(sys.argv[1])
