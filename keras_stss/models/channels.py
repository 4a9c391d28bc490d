"""Numbers of channels of narrower and wider networks."""


def round_channels(channels):
    """The multiple of 8 next to a number of channels, not less than 8 nor than 90 % of it (MobileNet-V2's rule)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
