"""Exit codes beside 0."""

#: What the user can mend, with one clear message.
MENDABLE = 2
#: Interrupted from the keyboard.
INTERRUPTED = 130
