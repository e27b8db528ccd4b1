"""Judge recorded arrays against the reference and the oracle. Every tolerance stands in ``budget``."""
