"""The script that NVFlare starts on each site; NVFlare copies it into the job and runs it as a file."""

import json
import sys
from pkgutil import resolve_name
from urllib.parse import unquote

if __name__ == "__main__":
    training = json.loads(unquote(sys.argv[1]))  # quoted as in a URL, since NVFlare splits at spaces
    sys.path.append(training.pop("bundle_root"))  # a site with the bundle elsewhere has it on its PYTHONPATH
    resolve_name("scripts.federated.site:take_part")(**training)
