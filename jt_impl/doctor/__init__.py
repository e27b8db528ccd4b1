"""Can this machine run the alignment? See ``__main__``."""
