"""Data whose passes are counted."""


class Counting:
    """Data that knows how often it was gone through."""

    def __init__(self, data):
        self.passes, self.data = 0, data

    def __iter__(self):
        self.passes += 1
        return iter(self.data)
