"""The compiled operations: loaded at first use, never at import."""
