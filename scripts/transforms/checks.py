"""What stops a case before anything is computed, each reason in one sentence."""


class CaseError(ValueError):
    """One case cannot be translated; its message is one sentence: the file, what is wrong, what to do."""
