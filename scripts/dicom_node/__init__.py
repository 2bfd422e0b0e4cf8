"""The DICOM node: takes studies by C-STORE, translates each, and sends on or puts down what came of it.

`Receiver` answers the network and writes to the `Spool`, which is all the state there is; `Worker` translates one
finished study at a time; `Sender` delivers. Each can be killed at any moment and goes on from the spool.
"""


class StoppedError(Exception):
    """The node ends; what was under way will be done again."""
