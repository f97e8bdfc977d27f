"""The one exception of the demo."""


class DemoError(Exception):
    """Something that the user can mend; its message is one line and says how."""
