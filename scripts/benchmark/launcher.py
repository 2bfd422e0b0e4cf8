"""Run a command and write how long it took and how much memory it had; itself as small as a Python can be.

A process counts among its peak what its parent had when it was started, so that the peak of a child of a large
process (one that has imported PyTorch) says nothing. A child of this one starts small. Run as a file, without imports.
"""

import json
import os
import subprocess
import sys
import time

if __name__ == "__main__":
    figures, *command = sys.argv[1:]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    with open(figures, "w", encoding="utf-8") as file:
        # ru_maxrss is in KiB on Linux; of a process that had children it is the largest of them, not their sum
        json.dump({"seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024}, file)
    sys.exit(os.waitstatus_to_exitcode(status))
